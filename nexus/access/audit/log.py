"""The audit log of one nexus: chained lines in segment files, one chain for each timeline.

Rules:
- A line is written, whole and with one call, before `append` returns: `kill -9` loses nothing. A thread of its own
  syncs within 50 ms what was written: a power cut may lose that much.
- When a write or a sync fails, every `append` is refused until a probe, once a second, has written and synced again.
  Only appends with `reserve` are still tried, into blocks set aside before.
- What a crash left after the last whole line stays where it is; a new segment begins with a line that names it.
- A checkpoint, signed when there is a key, follows every thousand lines and ends a segment.
"""

import contextlib
import fcntl
import os
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from common.clock import Clock, SystemClock
from common.errors import AuditUnavailableError, ConfigError, SealedError
from common.forms.audit.entry import Entry
from common.forms.audit.line import ChangeLine, CheckpointLine, EntryLine, Line, checkpoint_message
from nexus.access.audit.chain import Chain, ChainPosition
from nexus.access.audit.directory import load_recent_changes
from nexus.keys.signer import Signer

SEGMENT_SIZE: Final = 64 << 20  # bytes; a segment ends at the first sync after it
CHECKPOINT_EVERY: Final = 1000  # lines
GROUP_S: Final = 0.03  # lines that are written within this time are synced together
PROBE_S: Final = 1.0

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
        self._process_lock = _lock_process(directory / f"{nexus}.lock")
        self._failing = ""  # refuses appends
        self._export_failing = ""
        self._is_closed = False
        self._since_checkpoint = 0
        self._signing: tuple[Signer, list[bytes]] | None = None  # replaced whole, and without the lock
        self._written = threading.Event()
        self._stopping = threading.Event()
        try:
            self._chain = Chain(directory, nexus=nexus, timeline=timeline, clock=clock)
        except BaseException:
            os.close(self._process_lock)
            raise
        self._position = self._chain.position
        try:
            self._chain.file.set_aside()
        except OSError as exc:
            self._fail(exc)
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
    def nexus(self) -> str:
        """Name of the nexus whose audit it is."""
        return self._nexus

    @property
    def failing(self) -> str:
        """Why entries cannot be written now, or changes not exported; empty: they can."""
        return self._failing or self._export_failing

    @property
    def position(self) -> ChainPosition:
        """How far the chain of the current timeline has come; its last lines may not be synced yet.

        Waits for nothing: while a line is being written, it is where the chain stood when it was last asked.
        """
        if self._lock.acquire(blocking=False):
            try:
                self._position = self._chain.position
            finally:
                self._lock.release()
        return self._position

    def set_export_failing(self, reason: str) -> None:
        """Show in `failing` why entries of changes do not leave the store; appends go on."""
        self._export_failing = reason

    def set_signer(self, signer: Signer | None, links: Sequence[bytes] = ()) -> None:
        """Sign checkpoints from now on, None: no more; *links* lead from the genesis record to the signer's key.

        Waits for nothing: keys are wiped after it, even while a disk hangs. A checkpoint that is being written then is
        signed by the signer before, or not at all.
        """
        self._signing = None if signer is None else (signer, list(links))

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

    def sync(self) -> None:
        """Make durable what was written before this call.

        Raises:
            AuditUnavailableError: It may not be.
        """
        with self._syncing:
            with self._lock:
                self._check(reserve=False)
            self._sync()

    def load_recent_changes(self, *, since: int) -> dict[int, set[bytes]]:
        """Load what `append_change` wrote for revision *since* and later, from the last two segments at least.

        Raises:
            AuditUnavailableError: A segment cannot be read.
        """
        try:
            return load_recent_changes(self._directory, self._nexus, since=since)
        except OSError as exc:
            raise AuditUnavailableError(f"audit segment cannot be read: {exc.strerror}") from exc

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
                raise self._fail(exc) from exc
            self._chain.file.close()
            self._chain = chain

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
        try:
            self._chain.write(make, from_reserve=reserve)
        except OSError as exc:
            raise self._fail(exc) from exc
        self._since_checkpoint += 1

    def _write_checkpoint(self) -> None:
        chain, signing = self._chain, self._signing

        def make(seq: int) -> CheckpointLine:
            if signing is not None:
                signer, links = signing
                message = checkpoint_message(self._nexus, chain.timeline, seq, chain.digest, links)
                with contextlib.suppress(SealedError):  # its key was wiped meanwhile
                    return CheckpointLine(seq, chain.now(), signer.public_key, signer.sign(message), links)
            return CheckpointLine(seq, chain.now(), b"", b"", [])

        self._write(make, reserve=True)
        self._since_checkpoint = 0

    def _fail(self, exc: OSError) -> AuditUnavailableError:
        reason = exc.strerror or type(exc).__name__
        if not self._failing:
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
            self._written.wait()
            self._clock.wait(self._stopping, GROUP_S)
            self._written.clear()
            try:
                self._look_after()
            except AuditUnavailableError:
                continue  # it is failing now, and logged

    def _look_after(self) -> None:
        with self._syncing:
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
            raise self._fail(exc) from exc
        try:
            self._chain.begin_segment()
        except OSError as exc:
            _log.warning("audit segment goes on: no next one can be made", reason=exc.strerror)

    def _sync(self) -> None:
        with self._lock:
            file = self._chain.file
            lines = file.take_unsynced()
        if not lines:
            return
        try:
            file.sync()
        except OSError as exc:
            with self._lock:
                file.give_back(lines)
                raise self._fail(exc) from exc

    def _probe(self) -> None:
        """See whether writing and syncing work again, and say so in the audit."""
        with self._syncing, self._lock:
            chain = self._chain
            entry = Entry(at=chain.now(), actor="", action="audit.restored", detail=self._failing)
            try:
                chain.file.rewrite()
                chain.sync()
                chain.file.set_aside()
                chain.write(lambda seq: EntryLine(seq, entry))
                chain.sync()
            except OSError as exc:
                self._fail(exc)
                return
            self._failing = ""
        _log.info("audit works again")


def _lock_process(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(fd)
        raise AuditUnavailableError(f"audit lock {path} is held: another nexus writes this audit") from exc
    return fd
