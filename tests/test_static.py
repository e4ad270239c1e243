"""Rules that no linter of ours knows, over the source of everything."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SERVERS = ("common", "keeper", "nexus")
PROGRAMS = (*SERVERS, "client/shardhold", "pilot")
LINE_LIMIT = 500

# Where an error that goes on in silence could turn a wrong key into an empty answer.
KEY_ROOMS = (
    "common/forms",
    "common/keys",
    "keeper",
    "nexus/admin",
    "nexus/keepers",
    "nexus/keys",
    "nexus/lifecycle",
    "nexus/vault",
)

# The one place of each program that reads its environment.
ENVIRONMENT_READERS = {
    "client/shardhold/_calls.py",
    "client/shardhold/_quiet.py",  # gRPC reads the environment itself
    "client/shardhold/identity.py",
    "common/server/preload.py",  # gRPC reads the environment itself
    "keeper/__main__.py",
    "nexus/__main__.py",
}


def sources(*folders: str) -> list[str]:
    """List our Python files, generated ones left out."""
    found = (path.relative_to(ROOT).as_posix() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if not re.search(r"_pb2(_grpc)?\.py$", path))


def nodes(path: str) -> Iterator[ast.AST]:
    return ast.walk(ast.parse((ROOT / path).read_text(), filename=path))


def name_of(node: ast.expr | None) -> str:
    """Return a dotted name, or nothing for any other expression."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=name):
            return f"{name_of(value)}.{name}".lstrip(".")
        case _:
            return ""


def calls(path: str) -> Iterator[tuple[str, ast.Call]]:
    return ((name_of(node.func), node) for node in nodes(path) if isinstance(node, ast.Call))


def is_broad(handler: ast.ExceptHandler) -> bool:
    caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or name_of(kind) in ("Exception", "BaseException") for kind in caught)


def ends_by_raising(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("path", sources(*KEY_ROOMS))
def test_no_broad_except_in_a_key_path(path: str) -> None:
    """Cleaning up after whatever happened is fine when it is raised again; anything else names its errors."""
    broad = [node for node in nodes(path) if isinstance(node, ast.ExceptHandler) and is_broad(node)]
    assert [f"{path}:{handler.lineno}" for handler in broad if not ends_by_raising(handler)] == []


def test_no_file_is_too_long() -> None:
    """500 lines are the wall; a module is one noun and normally 100 to 250."""
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in sources(*PROGRAMS, "proto", "tests")}
    assert {path: length for path, length in lengths.items() if length > LINE_LIMIT} == {}


def test_generated_code_is_current() -> None:
    """The committed code is what the contracts in proto/ give."""
    command = [sys.executable, str(ROOT / "proto" / "generate.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_servers_and_sdk_do_not_print() -> None:
    """They log; only a start that fails before there are logs says so on stderr."""
    printing = {
        f"{path}:{call.lineno}"
        for path in sources(*SERVERS, "client/shardhold")
        for name, call in calls(path)
        if name == "print" and not (path.endswith("/__main__.py") and "file=sys.stderr" in ast.unparse(call))
    }
    assert printing == set()


def test_the_environment_is_read_in_one_place() -> None:
    """Servers read it in `__main__` and pass a model down; the SDK for its two variables, and gRPC's log."""
    readers = {
        path
        for path in sources(*SERVERS, "client/shardhold")
        for node in nodes(path)
        if (isinstance(node, ast.Attribute) and name_of(node) in ("os.environ", "os.environb", "os.getenv"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    }
    assert readers - ENVIRONMENT_READERS == set()


def test_events_are_literals() -> None:
    """An event is a constant in lower case and its context is named, so that logs conceal what must not be printed."""
    wrong = [
        f"{path}:{call.lineno}"
        for path in sources(*SERVERS, "pilot")
        for name, call in calls(path)
        if re.fullmatch(r"_?log(ger)?\.(debug|info|warning|error|exception|critical)", name)
        and not (
            len(call.args) == 1
            and isinstance(call.args[0], ast.Constant)
            and re.fullmatch(r"[a-z0-9 ,:'()-]+", str(call.args[0].value))
        )
    ]
    assert wrong == []


def test_tests_neither_sleep_nor_mock() -> None:
    """They wait for a condition with a deadline, and run real parts."""
    wrong = [
        f"{path}:{getattr(node, 'lineno', 0)}"
        for path in sources("tests")
        for node in nodes(path)
        if (isinstance(node, ast.Call) and name_of(node.func) in ("time.sleep", "sleep"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("unittest") for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unittest"))
    ]
    assert wrong == []


def test_the_lock_is_made_from_what_the_distributions_need() -> None:
    """requirements/server.in lists the dependencies of both distributions, with their ranges."""
    wanted: set[str] = set()
    for folder in (ROOT, ROOT / "client"):
        wanted |= set(tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"])
    listed = {line for line in (ROOT / "requirements" / "server.in").read_text().splitlines() if line[:1] != "#"}
    assert listed == wanted - {"shardhold"}


@pytest.mark.parametrize("name", ["build", "dev", "server", "sdk-lowest", "uv"])
def test_every_line_of_a_lock_has_hashes(name: str) -> None:
    """pip installs nothing from a lock whose file was not seen when it was made."""
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    entries = re.findall(r"(?m)^([a-z0-9._-]+==\S+)(.*)((?:\n    .*)*)", lock)
    assert entries
    assert [entry[0] for entry in entries if "--hash=sha256:" not in entry[2]] == []


def test_what_is_tested_is_what_is_installed() -> None:
    """The lock of images pins the versions that the tests ran with."""
    tested, installed = (
        set(re.findall(r"(?m)^([a-z0-9._-]+==[^\s;]+)", (ROOT / "requirements" / f"{name}.lock").read_text()))
        for name in ("dev", "server")
    )
    assert installed <= tested


def test_both_distributions_carry_the_licence() -> None:
    """The wheel of the SDK is built in its own folder, which has a copy of the text."""
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "client" / "LICENSE").read_bytes()
