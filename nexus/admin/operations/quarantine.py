"""The quarantine, as people see it: versions that did not open, which hold up the end of their KEK.

1. A version is tried again, or given up by name. Either is audited in the change itself.
2. The keyring counts what was given up under each KEK, in the change that marks the row. So whoever only writes the
   store cannot make a KEK go that rows depend on.
3. What was given up may be deleted with its secret, or tried again: then the count goes down to what is there.
"""

from collections.abc import Callable

from common.errors import InvalidArgumentError, NotFoundError
from common.failpoint import around
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.admin.seal import check_reason
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.job import count_abandoned, verify_again
from nexus.keys.operation.refusal import Refused
from nexus.keys.ruled_change import Decide, commit_decision
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Reader, Store, Writer
from nexus.store.rewrapping import QuarantineRow, VersionKey

MAX_PAGE = 1000


class Quarantine:
    """Thread-safe."""

    def __init__(self, *, store: Store, gate: Gate, warden: Warden, wake: Callable[[], None]) -> None:
        """*wake* makes the keyring job look again."""
        self._store = store
        self._gate = gate
        self._warden = warden
        self._wake = wake

    def list(self, caller: Caller, after: VersionKey | None, limit: int) -> list[QuarantineRow]:
        """List at most *limit* versions, 0: 1000, by path, incarnation and version; *after* one, None: from the first.

        Raises:
            InvalidArgumentError: The limit is too high.
            DeniedError: The caller's role does not allow it.
        """
        if not 0 <= limit <= MAX_PAGE:
            raise InvalidArgumentError(f"page_size: got {limit}, want at most {MAX_PAGE}")
        with self._gate.keyed_call(calls.LIST_QUARANTINE, caller) as (_, serving):
            floor = serving.floor.position
            with self._store.read() as reader:
                serving.floor.check_read(floor, reader.load_position())
                return reader.list_quarantine(after=after, limit=limit or MAX_PAGE)

    def retry(self, caller: Caller, key: VersionKey) -> None:
        """Take a version out of quarantine, so that the keyring job tries it again.

        Raises:
            NotFoundError: It is not in quarantine.
            OperationRefusedError: The keyring is frozen, and an older KEK is verified, or the version was given up.
        """
        with self._gate.role_call(calls.RETRY_QUARANTINED, caller) as record:
            _describe(record, key, "")

            def decide(writer: Writer, facts: Facts) -> Change | Refused:
                row = _require(writer, key)
                writer.retry_quarantined(key)
                lowered = lower_abandoned(writer, facts, row.kek_id) if row.abandoned_by else _keep(facts)
                if isinstance(lowered, Refused):
                    return lowered
                again = verify_again(facts.after(lowered))
                return again if isinstance(again, Refused) else lowered.join(again)

            with around("quarantine.retry"):
                self._commit(decide, record)
            self._wake()

    def abandon(self, caller: Caller, key: VersionKey, reason: str) -> None:
        """Give a version up: its KEK may go, and then nothing opens the version any more. Again: nothing changes.

        Raises:
            InvalidArgumentError: The reason is missing, too long or not printable.
            NotFoundError: It is not in quarantine.
            OperationRefusedError: The keyring is frozen: an operation is in progress.
        """
        check_reason(reason)
        if not reason:
            raise InvalidArgumentError("reason: got none, want one: what is given up does not come back")
        with self._gate.role_call(calls.ABANDON_QUARANTINED, caller) as record:
            _describe(record, key, reason)

            def decide(writer: Writer, facts: Facts) -> Change | Refused:
                row = _require(writer, key)
                is_new = writer.abandon_quarantined(key, by=caller.spiffe_id)
                if not is_new or row.kek_id == facts.kek_id or str(row.kek_id) not in facts.keyring.keks:
                    return _keep(facts)  # its KEK stays, or is unknown
                return count_abandoned(facts, row.kek_id, 1)

            with around("quarantine.abandon"):
                self._commit(decide, record)
            self._wake()

    def _commit(self, decide: Decide, record: CallRecord) -> None:
        self._warden.change(lambda serving: commit_decision(self._store, serving, decide, record.write))


def lower_abandoned(reader: Reader, facts: Facts, kek_id: int) -> Change | Refused:
    """Count no more versions under a KEK as given up than are (rule 3); never more than were counted (rule 2)."""
    kek = facts.keyring.keks.get(str(kek_id))
    excess = 0 if kek is None else kek.abandoned - reader.count_abandoned(kek_id)
    return count_abandoned(facts, kek_id, -excess) if excess > 0 else _keep(facts)


def _keep(facts: Facts) -> Change:
    """Change no control row."""
    return Change(facts.current, raises_epoch=False)


def _require(reader: Reader, key: VersionKey) -> QuarantineRow:
    before = key._replace(version=max(key.version - 1, -(1 << 63)))
    rows = reader.list_quarantine(after=before, limit=1)
    if not rows or rows[0].key != key:
        raise NotFoundError("no such version in quarantine")
    return rows[0]


def _describe(record: CallRecord, key: VersionKey, reason: str) -> None:
    record.path, record.version = key.path, key.version
    record.detail = f"incarnation {key.incarnation.hex()[:8]}{f': {reason}' if reason else ''}"
