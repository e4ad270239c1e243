"""Splits the virtual environment of a build into what each image holds: `layers.py VENV OUT`.

OUT/shared goes into all images, OUT/ROLE on top of it into one. A role's own part is its package and command, the
distributions of `_ALONE`, and what only those need. It runs in the build stage, with the Python of VENV.
"""

import re
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROLES = ("nexus", "keeper", "pilot")

# Distribution → roles that have it; all roles have what is not listed here.
_ALONE = {
    "rich": ("pilot",),
    "shamir-mnemonic": ("nexus", "pilot"),  # recovery words: the nexus opens the escrow with them
    "typer": ("pilot",),
    "zxcvbn-rs-py": ("pilot",),
}
_CONTRACT = (
    "keeper/__init__.py",
    "keeper/__pycache__/__init__.*.pyc",
    "keeper/v1",
)  # part of the keeper's package: how a nexus calls it


def main() -> None:
    """Split VENV; nothing that was moved stays in it."""
    venv, out = Path(sys.argv[1]), Path(sys.argv[2])
    site = next(venv.glob("lib/python3*/site-packages"))
    installed = {_normalise(one.name): one for one in distributions(path=[str(site)])}
    for name, roles in _find_alone(installed).items():
        for entry in _list_entries(installed[name], site):
            _move(venv, entry, out, roles)
    for pattern in _CONTRACT:
        for path in site.glob(pattern):
            _copy(venv, path, out / "nexus")
    for role in ROLES:
        _move(venv, site / role, out, (role,))
        _move(venv, venv / "bin" / role, out, (role,))
    for command in (venv / "bin").iterdir():
        if not command.name.startswith("python"):
            command.unlink()
    shutil.copytree(venv, out / "shared", symlinks=True)


def _find_alone(installed: dict[str, Distribution]) -> dict[str, tuple[str, ...]]:
    """Return the roles of each distribution that not all roles have."""
    ours = {"shardhold", "shardhold-server"}
    direct = {need for name in ours for need in _list_needs(installed[name])} - ours
    everywhere = _close(direct - set(_ALONE), installed)
    alone: dict[str, tuple[str, ...]] = {}
    for root, roles in _ALONE.items():
        for name in _close({root}, installed) - everywhere:
            alone[name] = tuple(role for role in ROLES if role in roles + alone.get(name, ()))
    return alone


def _close(roots: Iterable[str], installed: dict[str, Distribution]) -> set[str]:
    """Return *roots* and everything they need."""
    found: set[str] = set()
    left = [name for name in roots if name in installed]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [need for need in _list_needs(installed[name]) if need in installed]
    return found


def _list_needs(distribution: Distribution) -> set[str]:
    needs = (need for need in distribution.requires or () if "extra ==" not in need)
    return {_normalise(re.split(r"[^A-Za-z0-9._-]", need, maxsplit=1)[0]) for need in needs}


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _list_entries(distribution: Distribution, site: Path) -> set[Path]:
    """Return the folders and files in *site* that hold a distribution; none of ours shares a namespace."""
    return {site / file.parts[0] for file in distribution.files or () if file.parts[0] != ".."}


def _move(venv: Path, entry: Path, out: Path, roles: tuple[str, ...]) -> None:
    for role in roles:
        _copy(venv, entry, out / role)
    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _copy(venv: Path, entry: Path, layer: Path) -> None:
    target = layer / entry.relative_to(venv)
    target.parent.mkdir(parents=True, exist_ok=True)
    if entry.is_dir():
        shutil.copytree(entry, target, dirs_exist_ok=True)
    else:
        shutil.copy2(entry, target)


if __name__ == "__main__":
    main()
