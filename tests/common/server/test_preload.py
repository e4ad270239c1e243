"""`common.server.preload`: what a server does not load at its start."""

import subprocess
import sys

import pytest

from tests.kit.patience import at_most


@pytest.mark.parametrize("program", ["keeper", "nexus"])
def test_servers_load_no_rich_and_keep_grpc_quiet(program: str) -> None:
    """A server's modules load neither rich nor typer; gRPC is told to be quiet and to take no TLS 1.2 before that."""
    # gRPC itself reads its environment once: what is set when its module is looked for is what counts.
    code = f"""if True:
        import os, sys

        class Finder:
            def find_spec(self, name, path, target=None):
                if name == "grpc":
                    print(os.environ["GRPC_VERBOSITY"], os.environ["GRPC_SSL_CIPHER_SUITES"])

        sys.meta_path.insert(0, Finder())
        import {program}.__main__
        print(sorted({{'rich', 'typer', 'grpc'}} & set(sys.modules)))
    """
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"GRPC_SSL_CIPHER_SUITES": "HIGH"},
        capture_output=True,
        text=True,
        check=True,
        timeout=at_most(60),
    )
    assert ended.stdout.splitlines() == ["NONE ECDHE-PSK-AES128-CBC-SHA", "['grpc']"]


def test_the_sdk_leaves_the_environment_alone() -> None:
    """A process that uses the SDK, which has other uses for gRPC, keeps its choice of cipher suites."""
    code = "import shardhold, shardhold.channel, os; print([name for name in os.environ if name.startswith('GRPC')])"
    ended = subprocess.run(
        [sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True, timeout=at_most(60)
    )
    assert ended.stdout == "[]\n"


def test_rich_can_be_loaded_afterwards() -> None:
    """A module that imports rich in such a process still gets it."""
    code = "import common.server.preload, rich.console; rich.console.Console()"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=at_most(60)).returncode == 0
