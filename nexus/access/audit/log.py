"""The audit log of one nexus: chained lines in segment files, one chain for each timeline.

Rules:
- A line is written, whole and with one call, before `append` returns: `kill -9` loses nothing. A thread of its own
  syncs within 50 ms what was written: a power cut may lose that much.
- When a write or a sync fails, every `append` is refused until a probe, once a second, has written and synced again.
  Only appends with `reserve` are still tried, into blocks set aside before.
- With each sync, and each second, the log looks whether its directory and file are still where others find them. If
  not, it fails until they are back, or until somebody accepts that a new chain begins.
- What a crash left after the last whole line stays where it is; a new segment begins with a line that names it.
- A checkpoint, signed when there is a key, follows every thousand lines and each minute in which there were lines, and
  ends a segment. Before a key is wiped the last checkpoint is signed; it is written when the disk takes it, before
  any other line. So nothing that a key signs comes after what its successor signs.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.clock import Clock, SystemClock
from common.errors import AuditUnavailableError, ConfigError, SealedError
from common.forms.audit.entry import Entry
from common.forms.audit.line import ChangeLine, CheckpointLine, EntryLine, Line, checkpoint_message
from nexus.access.audit.chain import Chain
from nexus.access.audit.directory import ChainPosition, find_digest, load_recent_changes, lock_process
from nexus.access.audit.reader import ChainReader
from nexus.keys.signer import Signer

SEGMENT_SIZE: Final = 64 << 20  # bytes; a segment ends at the first sync after it
CHECKPOINT_EVERY: Final = 1000  # lines
GROUP_S: Final = 0.03  # lines that are written within this time are synced together
PROBE_S: Final = 1.0
LOOK_S: Final = 1.0  # how often a log without new lines looks where its files are
_SIGN_S: Final = 0.1  # how long a wipe may wait for the last checkpoint to be signed

_log = structlog.get_logger("audit")


class AuditLog:
    """Thread-safe."""

    def __init__(self, directory: Path, *, nexus: str, timeline: int, clock: Clock, segment_size: int) -> None:
        """Use `open`."""
        self._directory = directory
        self._nexus = nexus
        self._clock = clock
        self._segment_size = segment_size
        self._syncing = threading.Lock()  # held while a sync runs or the segment changes; taken before the next one
        self._lock = threading.Lock()  # guards all below
        self._lock_path = directory / f"{nexus}.lock"
        self._process_lock = lock_process(self._lock_path)
        self._failing = ""  # refuses appends
        self._is_displaced = False
        self._export_failing = ""
        self._failures = 0
        self._is_closed = False
        self._since_checkpoint = 0
        self._last: CheckpointLine | None = None  # signed and not written, for the next line
        self._signing: tuple[Signer, list[bytes]] | None = None  # replaced whole, and without the lock above
        self._choosing = threading.Lock()  # held while the one above is replaced; taken before `_lock`
        self._reading = threading.Lock()
        self._reader = ChainReader(directory, nexus)
        self._written = threading.Event()
        self._stopping = threading.Event()
        try:
            self._chain = Chain(directory, nexus=nexus, timeline=timeline, clock=clock)
        except BaseException:
            os.close(self._process_lock)
            raise
        self._synced = self._chain.position
        try:
            self._chain.file.set_aside()
        except OSError as exc:
            self._fail(_describe(exc))
        self._syncer = threading.Thread(target=self._keep_synced, name="audit-sync", daemon=True)
        self._syncer.start()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        nexus: str,
        timeline: int,
        clock: Clock | None = None,
        segment_size: int = SEGMENT_SIZE,
    ) -> "AuditLog":
        """Go on with the chain of *nexus* and *timeline* in *directory*, or begin it.

        Raises:
            ConfigError: The name does not fit into a file name.
            AuditUnavailableError: The directory is not there or refuses, or another process writes this audit.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", nexus):
            raise ConfigError(f"name: got {nexus!r}, want 1 to 64 of A-Z a-z 0-9 . _ -")
        try:
            return cls(
                directory, nexus=nexus, timeline=timeline, clock=clock or SystemClock(), segment_size=segment_size
            )
        except OSError as exc:
            raise AuditUnavailableError(f"audit in {directory} cannot be opened: {exc.strerror}") from exc

    @property
    def clock(self) -> Clock:
        """The clock that it goes by."""
        return self._clock

    @property
    def nexus(self) -> str:
        """Name of the nexus whose audit it is."""
        return self._nexus

    @property
    def failing(self) -> str:
        """Why entries cannot be written now, or changes not exported; empty: they can."""
        return self._failing or self._export_failing

    @property
    def refuses(self) -> bool:
        """Whether the files themselves do not take entries now."""
        return bool(self._failing)

    @property
    def failures(self) -> int:
        """How often writing entries or exporting changes has begun to fail since the start."""
        return self._failures

    @property
    def unsynced_lines(self) -> int:
        """How many lines a power cut could take back now. Waits for nothing, so it may miss the last ones."""
        return max(0, self._chain.seq - self._synced.seq)

    def list_obstacles(self) -> list[str]:
        """Say why all but a few calls are refused; empty when they are not."""
        failing = self.failing
        return [f"audit entries cannot be written, so almost every call is refused: {failing}"] if failing else []

    @property
    def is_displaced(self) -> bool:
        """Whether its files are not where others find them."""
        return self._is_displaced

    @property
    def position(self) -> ChainPosition:
        """How far the chain of the current timeline has come; its last lines may not be synced yet."""
        with self._lock:
            return self._chain.position

    @property
    def synced_position(self) -> ChainPosition:
        """How far the chain has come that no crash and no power cut takes back. Waits for nothing."""
        return self._synced

    def set_export_failing(self, reason: str) -> None:
        """Show in `failing` why entries of changes do not leave the store; appends go on."""
        self._failures += bool(reason and not self._export_failing)
        self._export_failing = reason

    def set_signer(self, signer: Signer | None, links: Sequence[bytes] = ()) -> None:
        """Sign checkpoints from now on, None: no more; *links* lead from the genesis record to the signer's key.

        Without a signer, a last checkpoint is signed, to be written later. Waits for no disk: keys are wiped after it.
        A checkpoint that is being written then is signed by the signer before, or not at all.
        """
        with self._choosing:
            if signer is None:
                self._sign_last()
            self._signing = None if signer is None else (signer, list(links))

    def replace_signer(self, signer: Signer, links: Sequence[bytes]) -> None:
        """Sign with the key of a later generation from now on, if there is one to sign with; otherwise do nothing.

        A last checkpoint by the key before is signed, to be written later. Waits for no disk, as `set_signer`.
        """
        with self._choosing:
            if self._signing is None or len(links) <= len(self._signing[1]):
                return  # its keys were withdrawn meanwhile, or a still later key signs already
            self._sign_last()
            self._signing = signer, list(links)

    def append(self, entry: Entry, *, reserve: bool = False) -> None:
        """Write *entry*. With *reserve* try even while failing, and use the room kept for that.

        Raises:
            AuditUnavailableError: It is not written.
        """
        with self._lock:
            self._check(reserve=reserve)
            self._write(lambda seq: EntryLine(seq, entry), reserve=reserve)
        if not self._written.is_set():
            self._written.set()

    def append_change(self, revision: int, entry: bytes) -> None:
        """Write the encoded entry of the change that has *revision*.

        Raises:
            AuditUnavailableError: It is not written.
        """
        with self._lock:
            self._check(reserve=False)
            self._write(lambda seq: ChangeLine(seq, revision, msgspec.Raw(entry)), reserve=False)
        if not self._written.is_set():
            self._written.set()

    def sync(self) -> ChainPosition:
        """Make durable what was written before this call, and return how far that is.

        Raises:
            AuditUnavailableError: It may not be.
        """
        with self._syncing:
            with self._lock:
                self._check(reserve=False)
            return self._sync()

    def end_stretch(self) -> ChainPosition:
        """Sign a checkpoint if there were lines since the last one, and a key; sync, and return how far that is.

        Raises:
            AuditUnavailableError: It may not be durable.
        """
        with self._syncing:
            with self._lock:
                self._check(reserve=False)
                if self._since_checkpoint and self._signing is not None:
                    self._write_checkpoint()
            return self._sync()

    def load_recent_changes(self, *, since: int, after: ChainPosition | None = None) -> dict[int, set[bytes]]:
        """Load what `append_change` wrote for revision *since* and later.

        From the last two segments at least, and from all that follows *after*.

        Raises:
            AuditUnavailableError: A segment cannot be read.
        """
        with _reading():
            return load_recent_changes(self._directory, self._nexus, since=since, after=after)

    def start_timeline(self, timeline: int) -> None:
        """Go on in the chain of *timeline*; the one before ends with a checkpoint.

        Raises:
            AuditUnavailableError: It cannot be begun; the one before goes on.
        """
        with self._syncing, self._lock:
            if timeline == self._chain.timeline:
                return
            self._check(reserve=False)
            self._write_checkpoint()
            try:
                self._chain.file.sync()
                chain = Chain(self._directory, nexus=self._nexus, timeline=timeline, clock=self._clock)
            except OSError as exc:
                raise self._fail(_describe(exc)) from exc
            self._chain.abandon()
            self._chain = chain
            self._synced = chain.position

    def begin_anew(self, entry: Entry) -> ChainPosition:
        """Begin a segment with *entry*, which says why, in the directory as it is now; return how far the chain is.

        What is there goes before it. Appends work afterwards.

        Raises:
            AuditUnavailableError: The directory is not there or refuses, or another process writes this audit.
        """
        with self._syncing, self._lock:
            if self._is_closed:
                raise AuditUnavailableError("audit is closed")
            timeline = self._chain.timeline
            try:
                if not self._is_displaced:
                    self._chain.sync()
                if not self._holds_lock():
                    lock = lock_process(self._lock_path)
                    os.close(self._process_lock)
                    self._process_lock = lock
                chain = Chain(self._directory, nexus=self._nexus, timeline=timeline, clock=self._clock, first=entry)
            except OSError as exc:
                raise self._fail(_describe(exc)) from exc
            self._chain.abandon()
            self._chain = chain
            self._synced = chain.position
            self._last = None
            self._failing, self._is_displaced = "", False
            return chain.position

    def find_digest(self, timeline: int, seq: int) -> bytes | None:
        """Find the hash of a line in the files, None when there is no such line.

        Raises:
            AuditUnavailableError: A segment cannot be read.
        """
        with _reading():
            return find_digest(self._directory, self._nexus, timeline, seq)

    def list_timelines(self) -> list[int]:
        """List the timelines of which there are files, ascending.

        Raises:
            AuditUnavailableError: The directory cannot be read.
        """
        with _reading():
            return self._reader.list_timelines()

    def read_lines(self, timeline: int, *, after: int | None, limit: int) -> list[bytes]:
        """Read at most *limit* whole lines after number *after*, None: the last ones.

        Raises:
            NotFoundError: There are no files of this timeline.
            AuditUnavailableError: A segment cannot be read.
        """
        with self._reading, _reading():
            return self._reader.read(timeline, after=after, limit=limit)

    def close(self) -> None:
        """Write the last checkpoint, sync and close. A second call does nothing; later appends are refused."""
        self._stopping.set()
        self._written.set()
        self._syncer.join()
        with self._syncing, self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._write_last()
                if self._since_checkpoint:
                    self._write_checkpoint()
                self._chain.close()
            except (OSError, AuditUnavailableError) as exc:
                _log.error("audit does not end with a synced checkpoint", reason=str(exc))
            os.close(self._process_lock)

    def _check(self, *, reserve: bool) -> None:
        if self._is_closed:
            raise AuditUnavailableError("audit is closed")
        if self._failing and not reserve:
            raise AuditUnavailableError(f"audit is failing: {self._failing}")

    def _write(self, make: Callable[[int], Line], *, reserve: bool) -> None:
        self._write_last()
        try:
            self._chain.write(make, from_reserve=reserve)
        except OSError as exc:
            raise self._fail(_describe(exc)) from exc
        self._since_checkpoint += 1

    def _write_last(self) -> None:
        """Write the checkpoint that was signed before a wipe, which fits nowhere but as the next line."""
        last = self._last
        if last is not None:
            try:
                self._chain.write(lambda seq: last, from_reserve=True)
            except OSError as exc:
                raise self._fail(_describe(exc)) from exc
            self._last = None
            self._since_checkpoint = 0

    def _write_checkpoint(self) -> None:
        self._write(self._make_checkpoint, reserve=True)
        self._since_checkpoint = 0

    def _make_checkpoint(self, seq: int) -> CheckpointLine:
        chain, signing = self._chain, self._signing
        if signing is not None:
            signer, links = signing
            message = checkpoint_message(self._nexus, chain.timeline, seq, chain.digest, links)
            with contextlib.suppress(SealedError):  # its key was wiped meanwhile
                return CheckpointLine(seq, chain.now(), signer.public_key, signer.sign(message), links)
        return CheckpointLine(seq, chain.now(), b"", b"", [])

    def _sign_last(self) -> None:
        """Sign a checkpoint of the lines so far in memory. Does not wait for a line that hangs with the disk."""
        if self._signing is None or not self._lock.acquire(timeout=_SIGN_S):
            return
        try:
            if self._since_checkpoint and self._last is None and not self._is_closed:
                self._last = self._make_checkpoint(self._chain.seq + 1)
        finally:
            self._lock.release()
        self._written.set()

    def _fail(self, reason: str) -> AuditUnavailableError:
        if not self._failing:
            self._failures += 1
            _log.error("audit is failing", reason=reason)
        self._failing = reason
        self._written.set()
        return AuditUnavailableError(f"audit is failing: {reason}")

    def _keep_synced(self) -> None:
        while not self._stopping.is_set():
            if self._failing:
                self._clock.wait(self._stopping, PROBE_S)
                self._probe()
                continue
            if self._clock.wait(self._written, LOOK_S):
                self._clock.wait(self._stopping, GROUP_S)
            self._written.clear()
            try:
                self._look_after()
            except AuditUnavailableError:
                continue  # it is failing now, and logged

    def _look_after(self) -> None:
        with self._syncing:
            with self._lock:
                self._write_last()
            self._sync()
            with self._lock:
                is_full = self._chain.file.size >= self._segment_size
                if is_full or self._since_checkpoint >= CHECKPOINT_EVERY:
                    self._write_checkpoint()
                if is_full:
                    self._begin_segment()

    def _begin_segment(self) -> None:
        try:
            self._chain.sync()
        except OSError as exc:
            raise self._fail(_describe(exc)) from exc
        try:
            self._chain.begin_segment()
        except OSError as exc:
            _log.warning("audit segment goes on: no next one can be made", reason=exc.strerror)

    def _sync(self) -> ChainPosition:
        with self._lock:
            file, position = self._chain.file, self._chain.position
            lines = file.take_unsynced()
        try:
            if lines:
                file.sync()
            displaced = self._chain.find_displacement()
        except OSError as exc:
            with self._lock:
                file.give_back(lines)
                raise self._fail(_describe(exc)) from exc
        if displaced:
            with self._lock:
                file.give_back(lines)
                self._is_displaced = True
                raise self._fail(displaced)
        self._synced = position
        return position

    def _probe(self) -> None:
        """See whether writing and syncing work again, and say so in the audit."""
        with self._syncing, self._lock:
            if not self._failing:
                return  # somebody has begun a new chain
            chain = self._chain
            entry = Entry(at=chain.now(), actor="", action="audit.restored", detail=self._failing)
            try:
                if displaced := chain.find_displacement():
                    self._is_displaced = True
                    self._fail(displaced)
                    return
                chain.file.rewrite()
                chain.sync()
                chain.file.set_aside()
                self._write_last()
                chain.write(lambda seq: EntryLine(seq, entry))
                chain.sync()
            except (OSError, AuditUnavailableError) as exc:
                if isinstance(exc, OSError):
                    self._fail(_describe(exc))
                return
            self._failing, self._is_displaced = "", False
        _log.info("audit works again")

    def _holds_lock(self) -> bool:
        try:
            return os.path.samestat(self._lock_path.lstat(), os.fstat(self._process_lock))
        except FileNotFoundError:
            return False


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise AuditUnavailableError(f"audit segment cannot be read: {exc.strerror}") from exc


def _describe(exc: OSError) -> str:
    return exc.strerror or type(exc).__name__
