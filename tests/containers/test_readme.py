"""The README's section on containers: its commands are run as they are printed, and show what stands there."""

import functools
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.stack import ROOT, Stack
from tests.containers.transcript import Step, looks_alike, read_steps

STEPS = read_steps((ROOT / "README.md").read_text(), "In containers")


@pytest.fixture
def empty(images: str, tmp_path: Path) -> Iterator[Stack]:
    """A project of which there is nothing yet."""
    stack = Stack(tmp_path, images)
    try:
        yield stack
    finally:
        stack.remove()


def test_the_readme_runs_as_printed(empty: Stack) -> None:
    """The README's commands alone start a cluster, put and read a secret, and bring a killed nexus back."""
    assert len(STEPS) > 4
    for step in STEPS:
        # Only a status may be asked for again: a keeper may just have been late.
        if step.command.endswith("pilot status"):
            empty.wait(step.command, functools.partial(shows, step, empty))
        else:
            printed = run(step, empty)
            assert looks_alike(step.shown, printed), f"$ {step.command}\n{printed}"


def shows(step: Step, stack: Stack) -> bool:
    """Return whether a step shows what is printed."""
    return looks_alike(step.shown, run(step, stack))


def run(step: Step, stack: Stack) -> list[str]:
    """Run a step as it is printed, and return the lines that it shows."""
    done = subprocess.run(
        ["bash", "-c", step.command],
        cwd=ROOT,
        env=stack.environ(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"$ {step.command}\n{done.stdout}{done.stderr}"
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("shown", "printed", "alike"),
    [
        pytest.param("state       ready", "state       ready", True, id="the same"),
        pytest.param("state       ready", "state       recovering", False, id="another word"),
        pytest.param(f"genesis  {'ab12 ' * 15}ab12", f"genesis  {'00ff ' * 15}00ff", True, id="another fingerprint"),
        pytest.param("revision     4", "revision     12", True, id="another number"),
        pytest.param("set   1: any 3 of 5", "set   1: any 3 of 5 (or so)", False, id="more than is shown"),
    ],
)
def test_a_difference_is_seen(shown: str, printed: str, alike: bool) -> None:
    """A run looks like its transcript only if nothing but random and counted numbers differs."""
    assert looks_alike([shown], [printed]) is alike
    assert not looks_alike([shown], [])
    assert read_steps("\n## A\n```console\n$ x\n1\n2\n```\n", "A") == [Step("x", ["1", "2"])]
