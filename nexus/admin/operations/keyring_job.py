"""The keyring job: brings every version to the current KEK, and ends older KEKs, in a thread of its own.

1. What is next is said by `nexus.keys.operation.job`, from rows read anew before each step. There is no record of it.
2. It works only while the nexus is ready, and borrows keys for a batch at a time.
3. Calls come first: batches are small, and it rests between them while calls are in flight.
4. A row that does not open holds up nothing but the end of its KEK.
5. Nothing to do costs a look at the position each second.
6. A commit of unknown outcome ends the process; a store that was put back ends ready.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Final

import structlog

from common.clock import Clock
from common.errors import (
    ConflictError,
    OperationRefusedError,
    OutcomeUnknownError,
    RecoveringError,
    SealedError,
    ShardholdError,
    StoreFileLostError,
    StoreLostError,
    WrongStateError,
)
from common.failpoint import around
from nexus.admin.operations.kek_end import KekEnd
from nexus.admin.operations.kek_scan import KekScan, Scanner
from nexus.admin.operations.look import FactsCache, Look, Mark, count_rows, find_mark
from nexus.admin.operations.pace import find_batch, find_rest
from nexus.admin.operations.progress import JobView, Progress
from nexus.admin.operations.rewrapping import Rewrapping
from nexus.keys.operation.job import Counts, JobStep, KekRows, Retire, Rewrap, Verify, Waiting, WaitsFor, next_job_step
from nexus.keys.operation.settings import find_hold
from nexus.keys.verified_backup import find_backup
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Position, Reader, Store
from nexus.store.rewrapping import VersionKey, WrappedRow

_IDLE_S: Final = 1.0  # between two looks at whether anything is to do, and after what failed
_WAITING_S: Final = 10.0  # between two looks at whether what it waits for has come, unless somebody says so
_BACKUP_AGAIN_S: Final = 600.0  # after a backup that could not be made
_AGAIN_S: Final = 0.01  # after somebody else was first
_PAGE: Final = 1000  # rows of the quarantine

log = structlog.get_logger("keyring-job")


class KeyringJob:
    """Used by its own thread, but for `start`, `stop`, `wake` and `view`."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        warden: Warden,
        clock: Clock,
        nexus: str,
        make_backup: Callable[[], object] | None = None,
        find_rate: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """*nexus* is whose audit its entries go to. The others are asked at each step, outside of reads and changes.

        *make_backup* makes a backup and verifies it, None: none are configured. *find_rate* says how many rows a
        second it may bring, 0: as calls in flight allow.
        """
        self._store = store
        self._lifecycle = lifecycle
        self._clock = clock
        self._make_backup = make_backup
        self._backup_tried_at: float | None = None  # of the monotonic clock
        self._find_rate = find_rate
        self._rewrapping = Rewrapping(store, lifecycle, clock)
        self._scanner = Scanner(store, lifecycle)
        self._kek_end = KekEnd(store=store, lifecycle=lifecycle, warden=warden, clock=clock, nexus=nexus)
        self._facts = FactsCache()
        self._progress = Progress(clock)
        self._cursor: tuple[int, int] | None = None  # KEK and row id of the last row of this pass
        self._rest: tuple[Mark, float | None] | None = None  # where nothing was to do, and until when; None: for good
        self._quarantined: int | None = None  # versions that nobody has given up; None: to be counted
        self._is_asked = False  # somebody says that something is to do
        self._view: JobView | None = None
        self._ending = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="keyring-job", daemon=True)

    def start(self) -> None:
        """Begin to look for rows under older KEKs."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what it was at goes on after the next start."""
        self._ending = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look at once whether something is to do."""
        self._is_asked = True
        self._wake.set()

    def view(self) -> JobView | None:
        """Say how far the job is, as of its last step; None: every row is under the current KEK, and that is alone."""
        return self._view

    def list_alarms(self) -> list[str]:
        """Say what somebody has to see to although the nexus serves."""
        count = self._view.quarantine if self._view is not None else 0
        return [f"{count} versions of secrets do not open: pilot root quarantine list"] if count else []

    def _run(self) -> None:
        said = ""
        while not self._ending:
            self._wake.clear()
            try:
                pause, why = self.step(), ""
            except OutcomeUnknownError as exc:
                self._lifecycle.give_up(f"keyring job: {exc}")
                return
            except ShardholdError as exc:
                pause, why = self._explain(exc)
            if why != said and why:
                log.warning("keyring job cannot go on yet", why=why)
            said = why
            if pause:
                self._clock.wait(self._wake, pause)

    def _explain(self, error: ShardholdError) -> tuple[float, str]:
        """Return how long to wait after an error, and what is to be said of it."""
        match error:
            case ConflictError():
                return _AGAIN_S, ""
            case StoreLostError() | StoreFileLostError():
                self._lifecycle.lose_store(str(error))
                self._forget()
                return _IDLE_S, str(error)
            case OperationRefusedError():  # somebody changed the keyring first: look again
                return _IDLE_S, str(error)
            case SealedError() | RecoveringError() | WrongStateError():
                self._forget()
                return _IDLE_S, ""
        self._quarantined = None
        return _IDLE_S, str(error)

    def _forget(self) -> None:
        """Forget what only a ready nexus knows."""
        self._facts.forget()
        self._progress.end()
        self._cursor = self._rest = self._quarantined = self._view = None

    def step(self) -> float:
        """Take one step, as the thread does again and again; return how many seconds to wait before the next."""
        look = self._look()
        if look is None:
            return _IDLE_S
        step = self._choose(look)
        paused = find_hold(look.facts)
        self._show(look, step, paused)
        if paused:
            return _IDLE_S
        if look.forgotten_keks:
            return 0.0 if self._kek_end.forget(look.forgotten_keks) else _IDLE_S
        if self._kek_end.is_scrub_due:
            return 0.0 if self._kek_end.scrub() else _IDLE_S
        return self._act(look, step)

    def _look(self) -> Look | None:
        """Look at the store; None: it is as it was when nothing was to do."""
        if self._is_asked:  # before the read begins: what is asked for is committed
            self._is_asked, self._rest, self._quarantined = False, None, None
        limit = find_batch(self._find_rate())
        with self._lifecycle.borrow() as serving:
            floor = serving.floor.position
            with self._store.read() as reader:
                position = reader.load_position()
                serving.floor.check_read(floor, position)
                if self._is_at_rest(position):
                    return None
                facts = self._facts.load(reader, serving, position)
                look = Look(serving, position, facts, rows=self._list_rows(reader, facts.kek_id, limit))
                if not look.rows:
                    counts = Counts({kek_id: count_rows(reader, kek_id) for kek_id in look.older_keks})
                    look = Look(serving, position, facts, counts=counts)
        return look

    def _is_at_rest(self, position: Position) -> bool:
        if self._rest is None:
            return False
        mark, until = self._rest
        if mark == find_mark(position) and (until is None or self._clock.monotonic() < until):
            return True
        self._rest = self._quarantined = None
        return False

    def _list_rows(self, reader: Reader, kek_id: int, limit: int) -> list[WrappedRow]:
        """List the next rows that are under one older KEK."""
        rows = reader.list_outdated(kek_id, after=self._cursor, limit=limit)
        if not rows and self._cursor is not None:  # what was left out is tried in the next pass
            self._cursor = None
            rows = reader.list_outdated(kek_id, limit=limit)
        return [row for row in rows if row.kek_id == rows[0].kek_id]

    def _choose(self, look: Look) -> JobStep | None:
        if not look.rows:
            return next_job_step(look.facts, look.counts, find_backup(look.facts))
        kek_id = look.rows[0].kek_id
        if str(kek_id) not in look.facts.keyring.keks:
            return Rewrap(kek_id, renews_deks=False)  # and see that it does not open
        return next_job_step(look.facts, Counts({kek_id: KekRows(open=len(look.rows))}), None)

    def _show(self, look: Look, step: JobStep | None, paused: str) -> None:
        """Let everybody see how far it is."""
        if look.rows and not self._progress.has_begun(look.facts.kek_id):
            self._progress.begin(look.facts.kek_id, self._count_outdated(look))
        if self._quarantined is None:
            self._quarantined = self._count_quarantine()[1]
        if step is None and not self._quarantined:
            self._progress.end()
            self._view = None
            return
        waits_for = step.waits_for if isinstance(step, Waiting) else WaitsFor.QUARANTINE if step is None else ""
        self._view = self._progress.view(
            has_rows=bool(look.rows), quarantine=self._quarantined, waits_for=str(waits_for), paused=paused
        )

    def _act(self, look: Look, step: JobStep | None) -> float:
        match step:
            case None:
                return self._settle(look, until=self._clock.monotonic() + _WAITING_S if self._quarantined else None)
            case Rewrap(renews_deks=renews_deks):
                return self._bring(look, look.rows, renews_deks=renews_deks)
            case Verify():
                self._verify(look)
            case Retire(kek_id=kek_id):
                self._kek_end.retire(kek_id)
            case Waiting(waits_for=WaitsFor.BACKUP) if self._may_make_backup():
                self._back_up()
            case Waiting():
                if (overcounted := self._find_overcounted(look)) is None:
                    return self._settle(look, until=self._clock.monotonic() + _WAITING_S)
                self._kek_end.recount(overcounted)
        return 0.0

    def _may_make_backup(self) -> bool:
        tried_at = self._backup_tried_at
        is_due = tried_at is None or self._clock.monotonic() - tried_at >= _BACKUP_AGAIN_S
        return self._make_backup is not None and is_due

    def _back_up(self) -> None:
        """Make the backup that an older KEK waits for."""
        self._backup_tried_at = self._clock.monotonic()
        if self._make_backup is not None:
            with around("job.backup"):
                self._make_backup()
            self._backup_tried_at = None

    def _settle(self, look: Look, *, until: float | None) -> float:
        """Rest until a control row or a key changes, somebody asks, or the moment *until*."""
        self._rest = find_mark(look.position), until
        return _IDLE_S

    def _bring(self, look: Look, rows: Sequence[WrappedRow], *, renews_deks: bool) -> float:
        """Bring the first of *rows* to the current KEK; return how long to rest."""
        began = self._clock.monotonic()
        batch = self._rewrapping.make(look, rows, renews_deks=renews_deks)
        has_callers = self._lifecycle.borrowers > 0
        count = self._rewrapping.write(look, batch)
        has_callers |= self._lifecycle.borrowers > 0
        if self._quarantined is not None:
            self._quarantined += count
        last = rows[batch.tried - 1]
        self._cursor = last.kek_id, last.row_id
        self._progress.add(batch.tried)
        took = self._clock.monotonic() - began
        return find_rest(batch.tried, took, has_callers=has_callers, rows_per_second=self._find_rate())

    def _verify(self, look: Look) -> None:
        """Read every row, and bring those that no index shows; commit which KEKs have none."""
        scan = KekScan()
        with around("job.verify"):
            while (found := self._read_on(look, scan)) is not None:
                for kek_id in {row.kek_id for row in found}:
                    rows = [row for row in found if row.kek_id == kek_id]
                    self._bring(look, rows, renews_deks=look.is_tainted(kek_id))
                if self._ending or self._is_paused():
                    return
        for kek_id in look.older_keks:
            if not look.facts.keyring.keks[str(kek_id)].verified_at and not scan.open[kek_id]:
                self._kek_end.verify(kek_id, scan)

    def _is_paused(self) -> bool:
        with self._lifecycle.borrow() as serving, self._store.read() as reader:
            return bool(find_hold(self._facts.load(reader, serving, reader.load_position())))

    def _read_on(self, look: Look, scan: KekScan) -> list[WrappedRow] | None:
        """Read one page, and rest as long while calls are in flight."""
        began = self._clock.monotonic()
        found = self._scanner.read_page(look, scan)
        if self._lifecycle.borrowers:
            self._clock.wait(self._wake, self._clock.monotonic() - began)
        return found

    def _find_overcounted(self, look: Look) -> int | None:
        """Return a KEK under which fewer versions are given up than the keyring counts, if it may be changed now."""
        if look.facts.operation is not None:
            return None
        keks = look.facts.keyring.keks
        return next((kek for kek in look.older_keks if look.counts.of(kek).abandoned < keks[str(kek)].abandoned), None)

    def _count_outdated(self, look: Look) -> int:
        """Count the rows that are to be brought to the current KEK."""
        with self._store.read() as reader:
            outdated = sum(count for kek_id, count in reader.count_by_kek().items() if kek_id < look.facts.kek_id)
        return max(outdated - self._count_quarantine()[0], len(look.rows))

    def _count_quarantine(self) -> tuple[int, int]:
        """Count the versions in quarantine, and those of them that nobody has given up."""
        count = undecided = 0
        after: VersionKey | None = None
        while True:
            with self._store.read() as reader:
                page = reader.list_quarantine(after=after, limit=_PAGE)
            count += len(page)
            undecided += sum(not row.abandoned_by for row in page)
            if len(page) < _PAGE:
                return count, undecided
            after = page[-1].key
