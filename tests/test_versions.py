"""Each program says which one it is, without a configuration."""

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize("program", ["nexus", "keeper", "pilot"])
def test_version(program: str) -> None:
    """One line, and nothing is started."""
    done = subprocess.run([sys.executable, "-m", program, "--version"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == (f"{program} {importlib.import_module(program).__version__}\n", "")
