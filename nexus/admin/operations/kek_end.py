"""The end of a KEK: it is verified, retired, forgotten, and what it was is overwritten."""

import structlog

from common.clock import Clock, to_micros
from common.failpoint import around
from common.forms.audit.entry import Entry
from nexus.admin.operations.kek_scan import KekScan
from nexus.admin.operations.look import count_rows
from nexus.admin.operations.quarantine import lower_abandoned
from nexus.keys.keyring import Keyring
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.job import KekRows, mark_verified, retire
from nexus.keys.operation.refusal import Refused
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import Decide, commit_decision
from nexus.keys.verified_backup import find_backup
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store, Writer

_BORROWED_S = 1.0  # to wait for everybody who may use a KEK yet, before it is tried again
_SCRUB_S = 1.0

log = structlog.get_logger("keyring-job")


class KekEnd:
    """Used by one thread. Every commit is made under the warden's lock, by the rules of `nexus.keys.operation.job`."""

    def __init__(
        self,
        *,
        store: Store,
        lifecycle: Lifecycle,
        warden: Warden,
        clock: Clock,
        nexus: str,
    ) -> None:
        """*nexus* is whose audit the entries go to."""
        self._store = store
        self._lifecycle = lifecycle
        self._warden = warden
        self._clock = clock
        self._nexus = nexus
        self.is_scrub_due = False

    def verify(self, kek_id: int, scan: KekScan) -> None:
        """Commit that a whole *scan* found no row under a KEK."""
        counted = KekRows(open=scan.open[kek_id])

        def decide(_: Writer, facts: Facts) -> Change | Refused:
            return mark_verified(facts, kek_id, counted, at=self._now)

        with around("job.verified"):
            self._commit(decide, "root.kek-verified", f"KEK {kek_id}: {scan.rows} versions were read")
        log.info("no version is under this key any more", kek=kek_id, read=scan.rows)

    def recount(self, kek_id: int) -> None:
        """Commit that fewer versions under a KEK are given up than were: their secrets were deleted."""

        def decide(writer: Writer, facts: Facts) -> Change | Refused:
            return lower_abandoned(writer, facts, kek_id)

        with around("job.recount"):
            self._commit(decide, "root.kek-recount", f"KEK {kek_id}: versions that were given up are deleted")

    def retire(self, kek_id: int) -> None:
        """Commit that a KEK goes."""

        def decide(writer: Writer, facts: Facts) -> Change | Refused:
            return retire(facts, kek_id, count_rows(writer, kek_id), find_backup(facts), at=self._now)

        with around("job.retire"):
            self._commit(decide, "root.kek-retired", f"KEK {kek_id}")
        self.is_scrub_due = True
        log.info("key encryption key retired", kek=kek_id)

    def forget(self, kek_ids: list[int]) -> bool:
        """Wipe KEKs that are in no row any more, once nobody uses them; False: somebody still does."""
        with around("job.forget"):
            if not self._lifecycle.wait_earlier(seconds=_BORROWED_S):
                return False
            # Under the warden's lock: an operation that begins wraps what the keyring has.
            self._warden.change(lambda serving: _forget(serving.keyring, kek_ids))
        return True

    def scrub(self) -> bool:
        """Overwrite what was deleted; False: the store is busy."""
        with around("job.scrub"):
            self.is_scrub_due = not self._store.scrub(seconds=_SCRUB_S)
        return not self.is_scrub_due

    def _commit(self, decide: Decide, action: str, detail: str) -> None:
        def write_entry(writer: Writer, key: RootKey) -> None:
            entry = Entry(at=self._now, actor="", action=action, detail=detail)
            append_entry(writer, key, self._nexus, entry.encode())

        self._warden.change(lambda serving: commit_decision(self._store, serving, decide, write_entry))

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


def _forget(keyring: Keyring, kek_ids: list[int]) -> None:
    for kek_id in kek_ids:
        keyring.forget_kek(kek_id)
