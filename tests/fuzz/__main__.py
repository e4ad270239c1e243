"""Fuzz for a time: `python -m tests.fuzz SECONDS [TEST …]` repeats the tests of this folder on new examples. The first
round is complete; the last one is cut off when the time is over.

Exits with 1 after the first round that fails; hypothesis has shrunk the example by then, and keeps it in
`.pytest_cache/hypothesis` for the next run.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.budget import EXAMPLES_VARIABLE

_EXAMPLES = 40  # for each target in a round, which takes some 30 s


def main() -> int:
    seconds, *tests = sys.argv[1:]
    end = time.monotonic() + float(seconds)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--timeout", "900"]
    rounds = 0
    while not rounds or time.monotonic() < end:
        rounds += 1
        print(f"fuzz: round {rounds}, {max(0.0, end - time.monotonic()):.0f} s left", flush=True)
        targets = tests or [str(Path(__file__).parent)]
        if seed := os.environ.get("TEST_SEED"):
            targets.append(f"--hypothesis-seed={int(seed) + rounds}")
        environ = {**os.environ, EXAMPLES_VARIABLE: str(_EXAMPLES), "TEST_PROFILE": "soak"}
        try:
            left = None if rounds == 1 else max(1.0, end - time.monotonic())
            done = subprocess.run([*command, *targets], env=environ, timeout=left, check=False)
        except subprocess.TimeoutExpired:
            break
        if done.returncode:
            print(f"fuzz: failed in round {rounds}", file=sys.stderr)
            return 1
    print(f"fuzz: nothing found, round {rounds} was the last")
    return 0


if __name__ == "__main__":
    sys.exit(main())
