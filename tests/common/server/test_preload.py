"""`common.server.preload`: what a server does not load at its start."""

import subprocess
import sys

import pytest

from tests.kit.patience import at_most


@pytest.mark.parametrize("program", ["keeper", "nexus"])
def test_servers_load_no_rich_and_keep_grpc_quiet(program: str) -> None:
    """A server's modules load neither rich nor typer, and gRPC is told to be quiet before it is loaded."""
    code = (
        f"import {program}.__main__, os, sys; print(sorted({{'rich', 'typer', 'grpc'}} & set(sys.modules)),"
        " os.environ['GRPC_VERBOSITY'])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=at_most(60)
    )
    assert ended.stdout.strip() == "['grpc'] NONE"


def test_rich_can_be_loaded_afterwards() -> None:
    """A module that imports rich in such a process still gets it."""
    code = "import common.server.preload, rich.console; rich.console.Console()"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=at_most(60)).returncode == 0
