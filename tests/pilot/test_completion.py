"""Shell completion: commands, their commands and their options, without importing or asking more than needed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.transcript import ROOT, run_pilot


def complete(typed: str) -> list[str]:
    """Return what bash is offered after *typed*."""
    told = run_pilot(
        environ={
            "_PILOT_COMPLETE": "complete_bash",
            "COMP_WORDS": f"pilot {typed}",
            "COMP_CWORD": str(typed.count(" ") + 1),
        }
    )
    assert (told.code, told.err) == (0, "")
    return told.out.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        pytest.param("uns", ["unseal"], id="a command"),
        pytest.param("se", ["seal", "secret"], id="commands that begin alike"),
        pytest.param("unseal ", ["start", "submit", "status", "exclude", "reset"], id="commands of unseal"),
        pytest.param("unseal su", ["submit"], id="a command of unseal"),
        pytest.param("unseal submit --nex", ["--nexus-id"], id="an option of its own"),
        pytest.param("accept-older-store --t", ["--timeline", "--timeout"], id="own and global options"),
        pytest.param("dev r", ["restart"], id="a command of dev"),
        pytest.param("status --output ", ["table", "json", "toml"], id="a choice"),
    ],
)
def test_completion(typed: str, offered: list[str]) -> None:
    """What is typed is completed to the existing commands; the hidden command of `unseal` is not offered."""
    assert sorted(complete(typed)) == sorted(offered)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_show_completion(shell: str) -> None:
    """The script for a shell names pilot and its variable."""
    told = run_pilot("--show-completion", shell, environ={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert told.code == 0
    assert "_PILOT_COMPLETE" in told.out


def test_install_completion_in_a_real_shell(tmp_path: Path) -> None:
    """Completion installs itself into bash, and a new bash has it."""
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Not the last command: else bash would become pilot, and there would be no shell left to find.
    install = f"cd {ROOT}; {sys.executable} -m pilot --install-completion; exit $?"
    done = subprocess.run(["bash", "-c", install], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    seen = subprocess.run(
        ["bash", "-c", "source ~/.bashrc; complete -p pilot"], env=environ, capture_output=True, text=True, check=True
    )
    assert seen.stdout.split()[-1] == "pilot"
