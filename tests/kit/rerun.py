"""Run tests as pytest does, and what failed three times more: `python -m tests.kit.rerun -- ARGUMENTS OF PYTEST`.

A machine that was busy fails no change, and a test that fails by chance is known by name. Once the suite is over:

1. A suite fails when more than two of its tests failed, or when pytest itself did.
2. A test marked `final` fails at once: what it found in a kill, a sweep, a memory or by a fuzzer may not come again.
3. So does a test of a file that the change touches: its failure is news. The change is what is not committed, and the
   commits since origin/main; on origin/main itself, and without one, the last commit.
4. Any other runs three times, each time in a process of its own, and passes when it did all three times.

Each that passed so is printed as FLAKY, with its entry for tests/flakes.toml, where it is appended unless CI is set.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tests.kit.failures import OPTION, Failure, Outcomes, load_outcomes
from tests.kit.flakes import Flake

RERUNS: Final = 3
MOST_FAILURES: Final = 2
FLAKES: Final = Path("tests/flakes.toml")


def main(arguments: Sequence[str]) -> int:
    """Run the suite, and return the exit code that pytest gave it or 0 if what failed was luck."""
    code, outcomes = run_pytest(arguments)
    if code != 1 or outcomes is None:
        return code
    if reason := find_reason(outcomes):
        print(f"rerun: {reason}", flush=True)
        return code
    flakes = []
    for failure in outcomes.failed:
        if not all(passes(failure.test, number) for number in range(1, RERUNS + 1)):
            print(f"rerun: {failure.test} failed again", flush=True)
            return code
        flakes.append(Flake(datetime.now(UTC).date(), failure.test, failure.error))
    report(flakes)
    return 0


def run_pytest(arguments: Sequence[str]) -> tuple[int, Outcomes | None]:
    """Run pytest in a new process; return its exit code, and what came out unless it did not get so far."""
    with tempfile.TemporaryDirectory(prefix="rerun-") as folder:
        file = Path(folder, "outcomes.json")
        command = [sys.executable, "-m", "pytest", "-p", "tests.kit.failures", f"{OPTION}={file}", *arguments]
        code = subprocess.run(command, check=False).returncode
        return code, load_outcomes(file) if file.exists() else None


def find_reason(outcomes: Outcomes) -> str:
    """Return why nothing is run again; empty: nothing speaks against it."""
    if outcomes.uncollected or not outcomes.failed:
        return "pytest could not run all of it"  # rule 1
    if len(outcomes.failed) > MOST_FAILURES:
        return f"{len(outcomes.failed)} tests failed, more than {MOST_FAILURES}"  # rule 1
    for failure in outcomes.failed:
        if failure.final:
            return f"{failure.test} is final"  # rule 2
    touched = find_touched()
    for failure in outcomes.failed:
        if touched is None or get_file(failure) in touched:
            return f"{failure.test} may be what the change broke"  # rule 3
    return ""


def find_touched() -> set[str] | None:
    """Return the files that the change touches, relative to here; None when git does not know."""
    base = _git("merge-base", "HEAD", "origin/main")
    if base is None or base == _git("rev-parse", "HEAD"):
        base = ["HEAD~1"]
    changed = _git("diff", "--name-only", "--relative", *base)
    new = _git("ls-files", "--others", "--exclude-standard")
    return None if changed is None or new is None else {*changed, *new}


def get_file(failure: Failure) -> str:
    """Return the file of a test, relative to here."""
    return failure.test.partition("::")[0]


def passes(test: str, number: int) -> bool:
    """Run one test again, and return whether it passed; to be skipped is not enough."""
    print(f"rerun: {test}, {number} of {RERUNS}", flush=True)
    code, outcomes = run_pytest(["-q", test])
    return code == 0 and outcomes is not None and outcomes.passed > 0  # rule 4


def report(flakes: Sequence[Flake]) -> None:
    """Say what was luck, and write it down where the next change brings it along."""
    entries = "".join(f"\n{flake.to_toml()}" for flake in flakes)
    for flake in flakes:
        print(f"FLAKY {flake.test}")
    print(f"rerun: for {FLAKES}:\n{entries}", flush=True)
    if not os.environ.get("CI"):
        with FLAKES.open("a") as file:
            file.write(entries)


def _git(*arguments: str) -> list[str] | None:
    """Return the lines that git says; None when it fails, or is not there."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


if __name__ == "__main__":
    _, *given = sys.argv
    sys.exit(main(given[1:] if given[:1] == ["--"] else given))
