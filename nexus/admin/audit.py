"""Read the audit, and accept that a chain of it ends where it should not."""

import threading

from common.clock import Clock, to_micros
from common.errors import InvalidArgumentError, WrongStateError
from common.forms.audit.entry import Entry
from nexus.access import calls
from nexus.access.audit.continuity import Continuity
from nexus.access.audit.directory import ChainPosition
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Caller, Gate
from nexus.admin.seal import MAX_REASON
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import AuditHead, Writer

DEFAULT_LINES = 100
MAX_LINES = 1_000
MAX_WAIT_S = 20.0
_LOOK_S = 0.2  # how often a waiting call looks for a line
_MOST_WAITING = 2  # each holds a worker; further calls are answered at once
_OWN_ENTRY = f'"action":"{calls.TAIL_AUDIT.action}"'.encode()


class Audit:
    """Thread-safe."""

    def __init__(
        self,
        *,
        gate: Gate,
        warden: Warden,
        audit: AuditLog,
        continuity: Continuity,
        clock: Clock,
    ) -> None:
        self._gate = gate
        self._warden = warden
        self._audit = audit
        self._continuity = continuity
        self._clock = clock
        self._waiting = threading.BoundedSemaphore(_MOST_WAITING)
        self._never = threading.Event()

    @property
    def nexus(self) -> str:
        """Name of the nexus whose audit it is."""
        return self._audit.nexus

    def tail(
        self,
        caller: Caller,
        timeline: int | None,
        *,
        after: int | None,
        limit: int,
        wait_s: float,
        longest_s: float = MAX_WAIT_S,
    ) -> tuple[int, list[bytes], list[int], AuditHead | None]:
        """Return timeline, lines, all timelines, and how far the files had come as the store remembers it.

        The last *limit* lines, or those after number *after*; 0: 100 lines. Waits at most *wait_s*
        seconds for one, and no longer than *longest_s*.

        Raises:
            InvalidArgumentError: Limit or wait.
            NotFoundError: There are no files of this timeline.
            AuditUnavailableError: They cannot be read.
        """
        if limit > MAX_LINES:
            raise InvalidArgumentError(f"limit: got {limit}, want at most {MAX_LINES}")
        if not 0 <= wait_s <= MAX_WAIT_S:
            raise InvalidArgumentError(f"wait: got {wait_s:g} s, want 0 to {MAX_WAIT_S:g}")
        with self._gate.role_call(calls.TAIL_AUDIT, caller) as record:
            chosen = self._audit.position.timeline if timeline is None else timeline
            record.detail = f"timeline {chosen}" + ("" if after is None else f" after {after}")
            head = self._continuity.load_head()  # first: the lines then reach at least as far
            lines = self._wait_for_lines(chosen, after, limit or DEFAULT_LINES, min(wait_s, longest_s))
            return chosen, lines, self._audit.list_timelines(), head

    def accept_new_chain(self, caller: Caller, reason: str) -> ChainPosition:
        """Begin a new chain, whose first entry says who accepted what and why; return where that is.

        Files that are not where they were are accepted in every state. Without a key the store goes on to remember the
        files before: they block once there is a key, until that is accepted too.

        Raises:
            InvalidArgumentError: No reason, or one that is too long or not printable.
            WrongStateError: There is nothing to accept.
            AuditUnavailableError: The directory is not there or refuses.
            StoreUnavailableError, StoreLostError: Nothing was committed; it stays blocked.
        """
        if not 1 <= len(reason) <= MAX_REASON or not reason.isprintable():
            raise InvalidArgumentError(f"reason: got {len(reason)} characters, want 1 to {MAX_REASON} printable ones")
        with self._gate.role_call(calls.ACCEPT_NEW_CHAIN, caller) as record:
            record.detail = reason
            is_ready = self._gate.state is State.READY
            displaced = self._audit.failing if self._audit.is_displaced else ""
            if is_ready and not displaced:
                raise WrongStateError("the audit files are where they were: there is nothing to accept")
            gap = "" if is_ready else self._find_gap(displaced)
            position = self._audit.begin_anew(self._make_entry(caller, reason, gap or displaced))

            def write_entry(writer: Writer, key: RootKey) -> None:
                record.write(writer, key)
                self._continuity.save_head(writer, key, position)

            if is_ready or gap:
                self._warden.accept_new_chain(write_entry)
            return position

    def _find_gap(self, displaced: str) -> str:
        """Return what blocks the held key; empty: nothing that can be accepted yet, and the files are *displaced*."""
        try:
            return self._warden.require_audit_gap()
        except WrongStateError:
            if not displaced:
                raise
            return ""

    def _make_entry(self, caller: Caller, reason: str, gap: str) -> Entry:
        return Entry(
            at=to_micros(self._clock.now()),
            actor=caller.spiffe_id,
            address=caller.address,
            action="audit.new-chain",
            detail=f"{reason}: {gap}",
        )

    def _wait_for_lines(self, timeline: int, after: int | None, limit: int, wait_s: float) -> list[bytes]:
        lines = self._audit.read_lines(timeline, after=after, limit=limit)
        if after is None or not wait_s or not _is_quiet(lines) or not self._waiting.acquire(blocking=False):
            return lines
        try:
            for _ in range(int(wait_s / _LOOK_S)):
                if not _is_quiet(lines):
                    break
                self._clock.wait(self._never, _LOOK_S)
                lines = self._audit.read_lines(timeline, after=after, limit=limit)
            return lines
        finally:
            self._waiting.release()


def _is_quiet(lines: list[bytes]) -> bool:
    """Say whether there is nothing but entries of this very call: whoever follows the audit would follow itself."""
    return all(_OWN_ENTRY in line for line in lines)
