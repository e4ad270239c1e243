"""One fault at one call that a nexus makes on its files, in one step of its life; then what is promised is checked.

- A step is prepared, traced, and made. strace lets the k-th call of one kind on one group of files (the store's, the
  audit's) kill the nexus or fail.
- A fault that lasts is told, by the answer to the call, by readiness, or by the end of the process.
- With the fault gone the nexus works again or has ended, by itself; it is killed, and started untraced.
- Then it is in a state between which the step leads; by what the documents say it becomes ready; what was acknowledged
  is there, and what was refused is not; every version opens; one set is current, of the one generation; the audit
  verifies, and has each change exactly once.

The nexus has one worker, so that the calls of a step come from one thread, which is what strace counts by.
"""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc

from common.forms.audit.verify import verify
from pilot.dev.cluster import server_command
from pilot.dev.probes import says_yes
from tests.cluster.ledger import Ledger
from tests.cluster.operations import Operations
from tests.cluster.strace import Injection, Strace, release
from tests.kit.cluster import Cluster
from tests.kit.stored_keys import load_stored

GROUPS = ("store", "audit")
ONE_WORKER = ("env", "SHARDHOLD_NEXUS__LISTEN__WORKERS=1")
_SEGMENTS_AHEAD = 3  # that a step may begin, in each timeline


@dataclass(frozen=True)
class Cell:
    """Where a fault comes."""

    group: str  # of files
    injection: Injection

    def __str__(self) -> str:
        return f"{self.group}, {self.injection}"


@dataclass(frozen=True)
class Step:
    """A step in the life of a nexus. *act* returns why it was refused; empty: it was not."""

    prepare: Callable[["Sweep"], None]
    act: Callable[["Sweep"], str]
    states: frozenset[str]  # after a restart, once it has settled
    states_answered: frozenset[str]  # the same, when it was answered
    traces_start: bool = False  # from its first instruction on; *act* starts it


class Sweep:
    """A cluster, and what was put into it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.forget()
        self._strace: Strace | None = None  # for a nexus that `start` starts

    def forget(self) -> None:
        """Forget what was put, when the store is thrown away."""
        self.ledger = Ledger(self.cluster.superuser)

    def run(self, step: Step, cell: Cell) -> bool:
        """Make *step* with the fault of *cell*, and check; return whether the fault came."""
        self.ledger.turn()
        step.prepare(self)
        strace = self._make_strace(cell.group, cell.injection)
        refused = self._trace(step, strace)
        self.wait_well()
        self.cluster.dev.kill("nexus")  # which may have ended, or be about to
        self.check_audit()
        self.start()
        state = self.cluster.wait_settled()
        assert state in (step.states if refused else step.states_answered), f"{state} ({refused or 'answered'})"
        self.bring_back()
        self.check()
        return strace.fired

    def record(self, step: Step) -> Iterator[tuple[str, str, int]]:
        """Make *step* without a fault for each group of files; yield group, call, and how many one thread makes."""
        for group in GROUPS:
            self.ledger.turn()
            step.prepare(self)
            strace = self._make_strace(group)
            refused = self._trace(step, strace)
            assert not refused, refused
            if not self.is_alive:
                self.start()
            self.bring_back()
            for call, count in sorted(strace.count_calls().items()):
                yield group, call, count

    @property
    def is_alive(self) -> bool:
        return self.cluster.dev.is_alive("nexus")

    @property
    def _database(self) -> Path:
        return self.cluster.directory.data / "nexus.db"

    @property
    def pid(self) -> int:
        return self.cluster.dev.state.processes["nexus"].pid

    def start(self) -> str:
        """Start the nexus, traced when a step wants that, and wait until it answers; return why it does not."""
        command = [*ONE_WORKER, *server_command(self.cluster.directory, "nexus")]
        if self._strace is not None:
            command = self._strace.wrap(command)
        self.cluster.processes.start_instead("nexus", command)
        self.cluster.wait("the nexus answers or ends", lambda: self._answers() or not self.is_alive)
        if self.is_alive:
            return ""
        assert self._strace is not None, f"the nexus ended\n{self.cluster.logs()}"
        return "it ended"

    def bring_back(self) -> None:
        """Make the nexus ready by what the documents say."""
        if self.cluster.wait_settled() in ("uninitialised", "initialising"):
            self.cluster.dev.init()
        self.cluster.bring_back()

    def check(self) -> None:
        """Check what is promised of a ready nexus, and that it works."""
        self.ledger.check()
        assert not self.ledger.put()
        Operations(self.cluster).wait_rest()  # a rotation that was cut off has ended, one way or the other
        stored = load_stored(self.cluster)  # exactly one set is current
        assert [row.name for row in stored.rows if row.kind == "escrow"] == [str(stored.shard_set.generation)]

    def check_audit(self) -> None:
        """Check the files of a nexus that has ended: they verify, and each change is there once, or in the store."""
        report = verify(self.cluster.directory.audit)
        assert not report.faults, report
        exported = Counter(self._list_exported())
        twice = {change for change, count in exported.items() if count > 1}
        assert not twice, f"exported twice: {twice}"
        revision, waiting = self.read_outbox()
        there = {change[0] for change in exported} | waiting
        missing = set(range(min(there, default=revision), revision)) - there  # before the first, init had no key
        assert not missing, f"revisions without an entry: {missing}"

    def read_outbox(self) -> tuple[int, set[int]]:
        """Return the revision of the store, and those whose entries are still in it."""
        if self.is_alive:
            return _read_outbox(f"file:{self._database}?mode=ro")
        with tempfile.TemporaryDirectory() as folder:  # what a nexus left stays as it is
            for file in self.cluster.directory.data.glob("nexus.db*"):
                shutil.copy(file, folder)
            return _read_outbox(f"file:{folder}/{self._database.name}")

    def is_drained(self) -> bool:
        """Whether all entries of changes have left the store; those of a sealed nexus stay, and are in the files."""
        try:
            waiting = self.read_outbox()[1]
            return not waiting or (self._is_sealed() and waiting <= {change[0] for change in self._list_exported()})
        except sqlite3.Error:
            return False

    def _waits_for_custodians(self) -> bool:
        """Whether no keeper got a shard before a kill: without a key, entries of changes stay in the store."""
        return self.cluster.fetch("nexus", "/readyz").count(" is empty") == len(self.cluster.keepers)

    def _is_sealed(self) -> bool:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as store:
            return bool(store.execute("SELECT sealed FROM meta").fetchone()[0])

    def wait_well(self) -> None:
        """Wait until a nexus whose files do what they should works by itself, or has ended."""
        self.cluster.wait("it works again, or ends", lambda: not self.is_alive or self._is_well())

    def says_audit_fails(self) -> bool:
        return "audit entries cannot be written" in self.cluster.fetch("nexus", "/readyz")

    def says_unscrubbed(self) -> bool:
        return "what was deleted may be in the files of the store yet" in self.cluster.fetch("nexus", "/readyz")

    def _trace(self, step: Step, strace: Strace) -> str:
        """Make the step under strace, until all that it writes is written, or the fault came."""
        if not step.traces_start:
            with strace.attached(self.pid):
                return self._act(step, strace)
        self._strace = strace
        try:
            return self._act(step, strace)
        finally:
            self._strace = None
            release(self.pid)

    def _act(self, step: Step, strace: Strace) -> str:
        def is_over() -> bool:
            is_broken = not self.is_alive or (strace.fired and not strace.kills)
            return is_broken or self.is_drained() or self._waits_for_custodians()

        def is_said() -> bool:
            return bool(refused) or not self.is_alive or self.says_audit_fails() or self.says_unscrubbed()

        refused = step.act(self)
        self.cluster.wait("the step is over", is_over)
        if strace.fired and strace.fails_for_good:
            self.cluster.wait("somebody is told: the caller, who asks for readiness, or who runs the process", is_said)
        return refused

    def _make_strace(self, group: str, injection: Injection | None = None) -> Strace:
        return Strace(self.cluster.directory.root / "strace.log", self._list_files(group), injection)

    def _list_files(self, group: str) -> list[Path]:
        directory = self.cluster.directory
        if group == "store":
            return [directory.data, *(directory.data / f"nexus.db{end}" for end in ("", "-wal", "-shm", "-journal"))]
        return [
            directory.audit,
            *(directory.audit / name for timeline in (0, 1) for name in self._list_segments(timeline)),
        ]

    def _list_segments(self, timeline: int) -> Iterator[str]:
        """Name the last segment of a timeline, and those that may follow."""
        segments = sorted(self.cluster.directory.audit.glob(f"nexus-1.{timeline:06}.*.jsonl"))
        last = int(segments[-1].name.split(".")[2]) if segments else 1
        for number in range(last, last + 1 + _SEGMENTS_AHEAD):
            yield f"nexus-1.{timeline:06}.{number:06}.jsonl"

    def _list_exported(self) -> Iterator[tuple[int, str]]:
        for path in sorted(self.cluster.directory.audit.glob("*.jsonl")):
            for line in path.read_bytes().splitlines(keepends=True):
                if line.startswith(b'{"kind":"change"') and line.endswith(b"\n"):
                    document = json.loads(line)
                    yield document["revision"], json.dumps(document["entry"], sort_keys=True)

    def _answers(self) -> bool:
        return says_yes(self.cluster.dev.state.ports["nexus"].http, "/livez")

    def _is_well(self) -> bool:
        with contextlib.suppress(grpc.RpcError):
            self.cluster.superuser.get_status()
            return self._answers() and not self.says_audit_fails()
        return False


def _read_outbox(uri: str) -> tuple[int, set[int]]:
    with closing(sqlite3.connect(uri, uri=True)) as store:
        if not store.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone():
            return 0, set()
        (revision,) = store.execute("SELECT revision FROM meta").fetchone()
        return revision, {row[0] for row in store.execute("SELECT revision FROM audit_outbox")}
