"""Who may import whom: the contracts in pyproject.toml hold, and cover every module."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.executable).with_name("lint-imports")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]

# Modules of nexus that translate between the core and the world; every other one is core.
EDGES = ("nexus.__main__", "nexus.config", "nexus.metrics", "nexus.process", "nexus.quorum.link", "nexus.server")
STORE_EDGES = "nexus.store"  # the drivers; its protocol is core


def run_linter(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--no-logo", "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def is_within(module: str, packages: list[str] | tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules_of(package: str) -> list[str]:
    found = (path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py"))
    return sorted(".".join(path.parts) for path in found if path.name != "__init__")


def contract(name: str) -> dict[str, list[str]]:
    return next(one for one in SETTINGS["contracts"] if one["id"] == name)


def test_the_contracts_hold() -> None:
    """No import breaks a contract, directly or through others."""
    result = run_linter()
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        pytest.param("keeper", "common", id="direct"),
        pytest.param("keeper", "shardhold._identity", id="through common"),
        pytest.param("nexus.store", "sqlite3", id="of the standard library"),
    ],
)
def test_the_linter_finds_what_is_forbidden(tmp_path: Path, source: str, forbidden: str) -> None:
    """A contract against imports that exist is broken: the check above can fail."""
    config = tmp_path / "contracts.toml"
    config.write_text(
        "[tool.importlinter]\n"
        f"root_packages = {SETTINGS['root_packages']}\n"
        "include_external_packages = true\n"
        "[[tool.importlinter.contracts]]\n"
        'name = "false"\ntype = "forbidden"\n'
        f"source_modules = ['{source}']\nforbidden_modules = ['{forbidden}']\n"
    )
    result = run_linter("--config", str(config))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 broken" in result.stdout


def test_every_module_of_nexus_is_core_or_edge() -> None:
    """A new module is core unless somebody makes it an edge on purpose."""
    core = contract("nexus-core")["source_modules"]
    for module in modules_of("nexus"):
        is_edge = is_within(module, EDGES) or (module.startswith(STORE_EDGES) and module != "nexus.store.protocol")
        assert is_within(module, core) != is_edge, f"{module}: add it to source_modules of the contract nexus-core"


def test_no_core_module_is_listed_that_is_gone() -> None:
    """The list of the core names modules and packages that exist."""
    known = modules_of("nexus")
    for listed in contract("nexus-core")["source_modules"]:
        assert any(is_within(module, [listed]) for module in known), listed


def test_the_core_may_import_no_edge() -> None:
    """Each edge stands among what the core must not import."""
    forbidden = contract("nexus-core")["forbidden_modules"]
    assert [edge for edge in EDGES if edge != "nexus.__main__" and edge not in forbidden] == []
