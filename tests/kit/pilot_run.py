"""`pilot run` as it runs, for tests of what it does meanwhile."""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pilot.dev.spawn import Child
from tests.kit.patience import at_most
from tests.kit.spawn import choose_spawn
from tests.kit.transcript import ROOT
from tests.kit.waiting import wait_until


@dataclass(frozen=True)
class PilotRun:
    """One `pilot run`, and the files that it and its program write to."""

    child: Child
    out: Path
    err: Path

    def wait_out(self, text: str) -> None:
        """Wait until exactly this was written."""
        try:
            wait_until(lambda: self.out.read_text() == text)
        except AssertionError:
            assert self.out.read_text() == text, self.err.read_text()
            raise

    def end(self) -> int:
        """Send SIGTERM, and return the exit code."""
        self.child.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code."""
        return self.child.wait(at_most(30))


@contextlib.contextmanager
def pilot_run(folder: Path, *arguments: str | Path, environ: Mapping[str, str]) -> Iterator[PilotRun]:
    """Run `pilot run` in a session of its own; kill it and its program if the test has not ended them."""
    out, err = folder / "out", folder / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr, Path(os.devnull).open("rb") as stdin:
        child = choose_spawn()(
            [sys.executable, "-P", "-m", "pilot", "run", *map(str, arguments)],
            environ=environ,
            directory=ROOT,
            stdin=stdin.fileno(),
            stdout=stdout.fileno(),
            stderr=stderr.fileno(),
            new_session=True,
        )
    try:
        yield PilotRun(child, out, err)
    finally:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
