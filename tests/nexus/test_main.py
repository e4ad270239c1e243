"""The command line of a nexus."""

import subprocess
import sys

import pytest

from tests.kit.patience import at_most
from tests.kit.waiting import WAIT_S


@pytest.mark.parametrize("arguments", [("health",), ("--check-config",), ()], ids=["health", "check", "run"])
def test_configuration_has_a_default_place(arguments: tuple[str, ...]) -> None:
    """Without --config it is where the image and the systemd unit have it."""
    command = [sys.executable, "-m", "nexus", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=at_most(WAIT_S), check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("nexus: error: configuration file /etc/shardhold/nexus.toml cannot be read")
