"""Who may import whom: the contracts in pyproject.toml hold, and cover every module."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LINTER = Path(sys.executable).with_name("lint-imports")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


def run_linter(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(LINTER), "--no-logo", "--no-cache", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_contracts_hold() -> None:
    """No import breaks a contract, directly or through others."""
    result = run_linter()
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("source", "forbidden"),
    [
        pytest.param("keeper", "common", id="direct"),
        pytest.param("keeper", "shardhold.identity", id="through common"),
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


@pytest.mark.parametrize("package", ["common", "nexus", "pilot"])
def test_a_module_in_no_room_breaks_the_contract(tmp_path: Path, package: str) -> None:
    """A module or folder that the floors of its package do not place fails the check."""
    floors = next(contract for contract in SETTINGS["contracts"] if contract["id"] == f"{package}-floors")
    unplaced = floors["layers"][:-1]  # as if the lowest rooms were new
    config = tmp_path / "contracts.toml"
    config.write_text(
        "[tool.importlinter]\n"
        f"root_packages = {SETTINGS['root_packages']}\n"
        "[[tool.importlinter.contracts]]\n"
        f'name = "floors"\ntype = "layers"\ncontainers = ["{package}"]\nexhaustive = true\nlayers = {unplaced}\n'
    )
    result = run_linter("--config", str(config))
    assert result.returncode == 1, result.stdout + result.stderr
    assert "not listed as layers" in result.stdout
