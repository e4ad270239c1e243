"""What is in the images, and what is not: files, layers and settings."""

import re
import tarfile
import tomllib
from pathlib import PurePosixPath

import pytest

from tests.containers.layers import Layer, list_layers, load_layers
from tests.containers.stack import IMAGES, REVISION, ROOT, docker, inspect, name_image

SITE = re.compile(r"opt/shardhold/lib/python3\.\d+/site-packages")

# Top-level names in site-packages that not all images have.
OURS = {"nexus": {"nexus", "keeper"}, "keeper": {"keeper"}, "pilot": {"pilot"}}
WORDS = {"shamir_mnemonic"}
COMMAND_LINE = {"typer", "rich", "pygments", "markdown_it", "mdurl", "shellingham", "pydantic", "pydantic_core"}
THEIRS = {"nexus": WORDS, "keeper": set[str](), "pilot": WORDS | COMMAND_LINE}
SHARED = {"common", "shardhold", "grpc", "cryptography", "google", "spiffe", "msgspec", "structlog", "tenacity"}

WRITABLE = {
    "nexus": {"var/lib/shardhold/data", "var/lib/shardhold/audit"},
    "keeper": set[str](),
    "pilot": {"var/lib/shardhold/recovery-shares"},
}

# Of what only builds and tests need, and of what nobody may publish.
UNWANTED = re.compile(
    r"(^|/)(pip|setuptools|ensurepip|wheel|hatchling|pytest|mypy|ruff|hypothesis|grpc_tools|_pytest)(/|$|-\d)"
    r"|(^|/)(tests?|\.git|\.venv|\.cache|\.env|\.ssh|deploy|docs|requirements|src|wheels|layers|build)(/|$)"
    r"|\.(whl|pem|key|toml|lock|proto|sh)$"
    r"|(^|/)(root|home|tmp|var/cache|var/log|run)/."
)
# Tests and builds that distributions ship inside themselves, and what the base image's folders are called.
THEIR_OWN = re.compile(r"site-packages/(grpc|google|pydantic|cffi|pycparser|rich|typer|cryptography|pyasn1\w*)/")


Layers = list[Layer]


@pytest.fixture(scope="module")
def all_layers(images: str) -> dict[str, Layers]:
    """What we put on the base, by the names of the images."""
    return load_layers([name_image(role, images) for role in IMAGES])


@pytest.fixture(params=IMAGES)
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image(role: str, images: str) -> str:
    return name_image(role, images)


@pytest.fixture
def layers(image: str, all_layers: dict[str, Layers]) -> Layers:
    return all_layers[image]


def list_packages(layers: Layers) -> set[str]:
    """Return the top-level names in site-packages, metadata aside."""
    found = set()
    for path in (PurePosixPath(path) for layer in layers for path in layer):
        if len(path.parts) > 5 and SITE.fullmatch("/".join(path.parts[:5])):
            name = path.parts[5]
            if not name.endswith(".dist-info"):
                found.add(name.partition(".")[0])
    return found


def test_an_image_holds_what_its_role_needs(role: str, layers: Layers) -> None:
    """An image holds the package of its role and the libraries that it loads; a nexus also the keepers' contract."""
    packages = list_packages(layers)
    assert packages >= SHARED
    assert packages & {"nexus", "keeper", "pilot"} == OURS[role]
    assert packages & (WORDS | COMMAND_LINE) == THEIRS[role]
    keeper = {path for layer in layers for path in layer if re.search(r"site-packages/keeper/\w+\.py$", path)}
    assert len(keeper) == {"nexus": 1, "pilot": 0}.get(role, len(list((ROOT / "keeper").glob("*.py"))))
    commands = {path for layer in layers for path in layer if path.startswith("opt/shardhold/bin/")}
    assert {path.rpartition("/")[2] for path in commands} == {role, "python", "python3", find_python(layers)}


def find_python(layers: Layers) -> str:
    """Return the name of the Python for which packages were installed, with its version."""
    found = {
        match[1]
        for layer in layers
        for path in layer
        if (match := re.match(r"opt/shardhold/lib/(python3\.\d+)/", path))
    }
    assert len(found) == 1
    return found.pop()


def test_nothing_else_is_in_its_layers(layers: Layers) -> None:
    """No layer, a hidden one included, holds a test, history, an installer, configuration or a key."""
    unwanted = {
        path
        for layer in layers
        for path, file in layer.items()
        if UNWANTED.search(path) and not THEIR_OWN.search(path) and file.kind != tarfile.DIRTYPE
    }
    assert not unwanted
    hidden = {path for layer in layers for path in layer if PurePosixPath(path).name.startswith(".wh.")}
    assert not hidden
    outside = {path for layer in layers for path in layer if not path.startswith(("opt", "var"))}
    assert not outside


def test_no_private_key_is_in_its_layers(layers: Layers) -> None:
    """No file of a layer holds a private key in PEM; the words around one stand in code that reads keys."""
    key = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/]{40}")
    assert not [path for layer in layers for path, file in layer.items() if key.search(file.content)]


def test_only_volumes_belong_to_the_user(role: str, layers: Layers) -> None:
    """All but the volumes belongs to root, who alone may write it; a new volume takes mode 0700 from its folder."""
    files = [(path, file) for layer in layers for path, file in layer.items()]
    mine = {path: file.mode for path, file in files if file.uid != 0}
    assert mine.pop("var/lib/shardhold", 0o755) == 0o755  # around them; it came with them
    assert mine == dict.fromkeys(WRITABLE[role], 0o700)
    assert not [path for path, file in files if file.kind != tarfile.SYMTYPE and file.mode & 0o6022]


def test_bytecode_is_there(layers: Layers) -> None:
    """Every module is compiled, since nothing can be written later, and is not compared with its source."""
    files = {path: file for layer in layers for path, file in layer.items()}
    modules = [path for path in files if path.endswith(".py") and "/site-packages/" in path]
    compiled = {
        re.sub(r"__pycache__/([^/]+)\.cpython-\d+\.pyc$", r"\1.py", path): path
        for path in files
        if path.endswith(".pyc")
    }
    assert len(modules) > 500
    assert not [path for path in modules if path not in compiled]
    # PEP 552: the flags say "by hash, unchecked".
    assert {files[compiled[path]].content[4:8] for path in modules} == {b"\x01\x00\x00\x00"}


def test_settings(role: str, image: str) -> None:
    """An image has a numeric user that is not root, labels, and entry point and health check without a shell."""
    config = inspect(image)[0]["Config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == [role]
    labels = config["Labels"]
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert labels["org.opencontainers.image.title"] == f"shardhold-{role}"
    assert labels["org.opencontainers.image.version"] == version
    assert labels["org.opencontainers.image.revision"] == REVISION
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert not config["Cmd"] or role == "pilot"
    checks = {"nexus": ["CMD", "nexus", "health", "--live"], "keeper": ["CMD", "keeper", "health"], "pilot": []}
    assert config.get("Healthcheck", {"Test": []})["Test"][: len(checks[role])] == checks[role]
    names = {variable.partition("=")[0] for variable in config["Env"]}
    assert names >= {"PATH", "PYTHONSAFEPATH", "PYTHONDONTWRITEBYTECODE"}
    assert not {name for name in names if re.search("SECRET|TOKEN|PASSWORD|_CA$|PIP_|PROXY", name.upper())}


def test_layers_are_shared(images: str, all_layers: dict[str, Layers]) -> None:
    """What all images need is one layer of all of them, and the layers of one role are the lesser part of its image."""
    digests = list_layers([name_image(role, images) for role in IMAGES])
    common = set.intersection(*map(set, digests.values()))
    assert common
    for image, found in zip(digests, inspect(*digests), strict=True):
        size = found["Size"]
        layers = zip(digests[image], all_layers[image], strict=True)
        own = sum(len(file.content) for digest, layer in layers if digest not in common for file in layer.values())
        print(f"\n{image}: {size / 1e6:.0f} MB, of its own {own / 1e6:.1f} MB")
        assert own < size / 4


def test_the_programs_start_without_a_shell(role: str, image: str) -> None:
    """Every program starts without a shell, a network, a capability and anything to write to."""
    hidden = [f"--volume=/dev/null:/usr/bin/{shell}:ro" for shell in ("dash", "bash")]
    bare = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--network", "none"]
    said = docker("run", "--rm", *bare, *hidden, image, "--help")
    assert "usage" in said.lower()
