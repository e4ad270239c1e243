"""Failpoints stand around everything that an operation on the root key does to the store, the keepers or the keys.

Found in the source, so that a new step cannot be forgotten: a point around it, a name in `common.failpoint`, and with
the name a cell of the kill matrix (`tests/cluster/test_operation_kills.py`).
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.failpoint import KEEPER, NEXUS

ROOT = Path(__file__).parent.parent
OPERATIONS = sorted((ROOT / "nexus" / "admin" / "operations").glob("*.py"))
ELSEWHERE = {
    "seal.end": "nexus/lifecycle/sealing.py",
    "unseal.end": "nexus/keys/replacement.py",
    "accept.escrow": "nexus/keys/replacement.py",
    "accept.commit": "nexus/keys/replacement.py",
}

# What an operation asks of other rooms: what leaves a trace there, and what only looks.
ACTS = {
    "_store": {"write", "scrub"},
    "_warden": {"change", "hand_out", "keep_again", "seal", "admit", "accept"},
    "_pool": {"gather", "prove_again", "wait_marked", "keep", "empty", "collect", "watch", "follow"},
    "_rehearsal": {"gather", "prove", "prove_flip"},
}
LOOKS = {
    "_store": {"read"},
    "_warden": set[str](),
    "_pool": {"probe", "find_holders", "seats"},
    "_rehearsal": {"release"},
}


@dataclass
class Function:
    """What a function does to other rooms, and whom it calls, each with whether that stands within a point."""

    acts: list[tuple[str, bool]] = field(default_factory=list)
    calls: list[tuple[str, bool]] = field(default_factory=list)


def read_points(node: ast.expr) -> tuple[str, ...]:
    """Return the names of the points that `around(…)` is given; empty when this is no point."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "around"):
        return ()
    (name,) = node.args
    choices = (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,)
    assert all(isinstance(one, ast.Constant) for one in choices), f"want around(LITERAL): {ast.unparse(node)}"
    return tuple(str(one.value) for one in choices if isinstance(one, ast.Constant))


def find_points(path: Path) -> set[str]:
    """Return the names of all points in a module."""
    tree = ast.parse(path.read_text())
    return {name for node in ast.walk(tree) if isinstance(node, ast.expr) for name in read_points(node)}


def find_room(call: ast.Call) -> tuple[str, str]:
    """Return the part of this object that is called, and the method: `self._pool.gather(…)`; empty: it is none."""
    match call.func:
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="self"), attr=room), attr=method):
            return room, method
    return "", ""


def is_read(call: ast.Call) -> bool:
    """Whether it only reads, under the warden's lock."""
    return "self._load_" in ast.unparse(call) and len(call.args) == 1 and isinstance(call.args[0], ast.Attribute)


def walk(node: ast.AST, *, within: bool = False) -> Iterator[tuple[ast.Call, bool]]:
    """Give every call below *node*, and whether it stands within a point."""
    if isinstance(node, ast.Call):
        yield node, within
    if isinstance(node, ast.With) and any(read_points(item.context_expr) for item in node.items):
        within = True
    for child in ast.iter_child_nodes(node):
        yield from walk(child, within=within)


def find_called(call: ast.Call, module: str) -> str:
    """Return whom a call in *module* means, as module.function: a function there, or one of a part of this object."""
    match call.func:
        case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
            return f"{module}.{name}"
    part, name = find_room(call)
    return f"{part.removeprefix('_')}.{name}"


def read_function(node: ast.FunctionDef, path: Path) -> Function:
    """Read one function of the module *path*."""
    found = Function()
    for call, within in walk(node):
        room, method = find_room(call)
        if room in ACTS and method in ACTS[room] and not is_read(call):
            found.acts.append((f"{path.name}:{call.lineno}: {ast.unparse(call.func)}", within))
        found.calls.append((find_called(call, path.stem), within))
    return found


def load_functions() -> dict[str, Function]:
    """Return the functions of the package, as module.function."""
    return {
        f"{path.stem}.{node.name}": read_function(node, path)
        for path in OPERATIONS
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }


FUNCTIONS = load_functions()


def is_guarded(name: str, seen: frozenset[str] = frozenset()) -> bool:
    """Whether every call of a function stands within a point, there or further out."""
    seen |= {name}
    calls = [
        (caller, within)
        for caller, function in FUNCTIONS.items()
        if caller not in seen
        for called, within in function.calls
        if called == name
    ]
    return bool(calls) and all(within or is_guarded(caller, seen) for caller, within in calls)


def test_every_step_of_an_operation_stands_within_a_point() -> None:
    """Each write, scrub, transition and demand on keepers in nexus/admin/operations can be interrupted by a test."""
    acts = [(act, within, name) for name, function in FUNCTIONS.items() for act, within in function.acts]
    assert len(acts) > 8
    assert not [act for act, within, name in acts if not within and not is_guarded(name)]


def test_every_call_of_another_room_is_known() -> None:
    """A method of store, warden or keepers is either one that acts, and then within a point, or one that only looks."""
    called = {
        (room, method)
        for path in OPERATIONS
        for call, _ in walk(ast.parse(path.read_text()))
        for room, method in [find_room(call)]
        if room in ACTS
    }
    assert called
    assert not {(room, method) for room, method in called if method not in ACTS[room] | LOOKS[room]}


def test_the_names_of_the_nexus_are_those_in_its_code() -> None:
    """No name without a point, and no point without a name."""
    found = set().union(*map(find_points, OPERATIONS))
    assert not found & ELSEWHERE.keys()
    for name, path in ELSEWHERE.items():
        assert name in find_points(ROOT / path)
    assert found | ELSEWHERE.keys() == NEXUS


def test_the_names_of_the_keeper_are_those_in_its_code() -> None:
    """The same for a keeper."""
    assert set().union(*map(find_points, (ROOT / "keeper").glob("*.py"))) == KEEPER


@pytest.mark.parametrize("folder", ["common", "keeper", "nexus"])
def test_no_other_module_has_a_point(folder: str) -> None:
    """Points stand in operations, at what ends one, and in the keeper's service, and nowhere else."""
    allowed = {*OPERATIONS, *(ROOT / path for path in ELSEWHERE.values()), ROOT / "keeper" / "service.py"}
    strays = [str(path) for path in (ROOT / folder).rglob("*.py") if path not in allowed and find_points(path)]
    assert not strays
