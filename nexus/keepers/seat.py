"""One keeper as the nexus sees it, and the four duties that the nexus may have towards it.

- Watch: ask for its status, before there is a set.
- Collect: during a recovery, ask for its shard until enough shards are there.
- Keep: make sure that it holds its shard. Fill it when it is empty; once for each of its boots, check a shard that this
  nexus did not give it; drop older sets; give it the newest rollback mark.
- Empty: while sealed, drop every set that it holds, whatever else is wrong with it.

In each duty but the first it is asked for its rollback mark, once for each boot, and when it has seen a higher epoch
than that of this nexus. A mark that does not verify is a lie; so is a report of more sets than a keeper can hold, of
one that it has dropped in this boot, or of ever new ones to drop. A keeper that is given an older mark than it holds
answers with its own, or refuses it, and is then asked: the store of this nexus is behind. A keeper that has seen a
higher epoch refuses whatever this nexus wants to change.

A keeper is trusted only as far as its shard matches its commitment. What is wrong with it is a sentence in `fault`; a
fault never stops the others.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import structlog

from common.errors import (
    BadShardError,
    DeniedError,
    IntegrityError,
    KeeperUnreachableError,
    MarkError,
    NotFoundError,
    ShardholdError,
    WrongStateError,
)
from common.forms.delivery import SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from common.keys import shamir
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.link import KeeperLink, KeeperReport
from nexus.keepers.marks import MarkBook
from nexus.keepers.notes import Note, note_nothing
from nexus.keys.records import MemberRecord
from nexus.keys.shard_set import Member, ShardSet, check_shard

CALL_TIMEOUT = 2.0  # seconds for one call to a keeper
POLL_INTERVAL = 1.0  # seconds between two polls
MAX_SETS = 2  # that a keeper can hold
MAX_DROPPED = 64  # sets in one boot; nobody seals so often, and a keeper may invent any number
RETRY_PAUSE = (0.1, 1.0)  # seconds, full jitter, while recovering

log = structlog.get_logger("keepers")


@dataclass(frozen=True, slots=True)
class SeatStatus:
    """What is known of one keeper."""

    reachable: bool = False
    holds_current_set: bool = False
    fault: str = ""
    is_empty: bool = False  # dropped whatever it held, at the last step of that duty
    cluster_id: bytes = b""  # that it serves until it ends; empty: none yet
    version: str = ""
    memory_protection: int = 0
    epoch: StoreEpoch = NO_EPOCH  # the highest that it says it has seen


class Seat:
    """Used by one thread; `status` may be read by any."""

    def __init__(self, member: Member, link: KeeperLink, memory: ProtectedMemory, note: Note = note_nothing) -> None:
        """*note* hears what was done with the keeper and what went wrong, for the audit."""
        self.member = member
        self._note = note
        self.link = link
        self.status = SeatStatus()
        self._memory = memory
        self._epoch = NO_EPOCH  # of the store, at the duty of now
        self._proven_boot = b""  # boot in which its shard was given or checked
        self._proven_set = b""
        self._accused_boot = b""  # boot in which it lied
        self._accusation = ""
        self._dropped: tuple[bytes, set[bytes]] = (b"", set())  # the sets that it dropped, and in which boot; bounded
        self._asked = (b"", NO_EPOCH)  # boot and epoch in which it was asked for its mark
        # The last mark that it took, in which boot and at which epoch.
        self._given: tuple[SignedMark, bytes, StoreEpoch] | None = None

    def watch(self) -> float:
        """Ask how the keeper is; return the seconds until the next step."""
        return self._guarded(self._watch, POLL_INTERVAL)

    def collect(self, collection: Collection, book: MarkBook) -> float:
        """Offer the keeper's shard to *collection*; return the seconds until the next step."""
        pause = random.uniform(*RETRY_PAUSE)  # noqa: S311 — jitter
        return self._guarded(lambda: self._collect(collection, book), pause)

    def keep(
        self,
        shard_set: ShardSet,
        book: MarkBook,
        find_mark: Callable[[], SignedMark | None],
        epoch: StoreEpoch,
    ) -> float:
        """See to it that the keeper holds its shard of *shard_set*; return the seconds until the next step.

        *find_mark* gives the newest mark for it, None when there is none to give any more. *epoch* is the store's.
        """
        self._epoch = epoch
        record = next((one for one in shard_set.record.members if one.name == self.member.name), None)
        if record is None:
            return self.watch()
        if record.spiffe_id != self.member.spiffe_id:
            # The link was made of a row that nothing had verified yet. What verified names another keeper.
            self._set_status(holds_current_set=False, fault="is not the keeper of the proved set: start the nexus anew")
            return POLL_INTERVAL
        return self._guarded(lambda: self._keep(shard_set, record, book, find_mark), POLL_INTERVAL)

    def empty(self, book: MarkBook, last_mark: SignedMark | None, epoch: StoreEpoch) -> float:
        """Make the keeper drop what it holds, after it took *last_mark*; return the seconds until the next step."""
        self._epoch = epoch
        return self._guarded(lambda: self._empty(book, last_mark), POLL_INTERVAL)

    def _watch(self) -> None:
        self._fetch_report()
        self._set_status(fault="")

    def _collect(self, collection: Collection, book: MarkBook) -> None:
        record = collection.members.get(self.member.name)
        if record is not None and not collection.has(record.x):
            self._offer(collection, record)
        report = self._fetch_report()
        self._check_report(report)
        self._ask_mark(report, book)
        self._set_status(fault=self._find_accusation(report))

    def _offer(self, collection: Collection, record: MemberRecord) -> None:
        buffer = self._memory.allocate(shamir.SHARD_SIZE)
        try:
            boot_id = self.link.fetch_shard(collection.cluster_id, collection.set_id, into=buffer, timeout=CALL_TIMEOUT)
            self._check_shard(buffer, record, collection.cluster_id, collection.set_id, boot_id)
        except NotFoundError:
            buffer.release()
            collection.lacking.add(self.member.name)
            self._set_status(reachable=True, holds_current_set=False)
            return
        except BaseException:
            buffer.release()
            raise
        self._proven_boot, self._proven_set = boot_id, collection.set_id
        self._set_status(reachable=True, holds_current_set=True)
        collection.offer(record.x, buffer)

    def _empty(self, book: MarkBook, last_mark: SignedMark | None) -> None:
        self._proven_set = b""
        report = self._fetch_report()
        held = [one.label for one in report.sets if one.label.cluster_id == book.cluster_id]
        try:
            self._check_report(report)
            self._ask_mark(report, book)
            if report.cluster_id == book.cluster_id and last_mark is not None:
                self._give_mark(last_mark, report, book)
            fault = self._find_accusation(report)
        except ShardholdError as exc:
            fault = str(exc)
        for label in held:
            self._drop(label, report)
        self._set_status(holds_current_set=False, is_empty=True, fault=fault)

    def _keep(
        self,
        shard_set: ShardSet,
        record: MemberRecord,
        book: MarkBook,
        find_mark: Callable[[], SignedMark | None],
    ) -> None:
        if self._proven_set != shard_set.record.set_id:
            self._proven_boot, self._proven_set = b"", shard_set.record.set_id
        report = self._fetch_report()
        self._check_report(report)
        self._ask_mark(report, book)
        if accusation := self._find_accusation(report):
            self._set_status(holds_current_set=False, fault=accusation)
            return
        if not any(held.label.set_id == shard_set.record.set_id for held in report.sets):
            self._set_status(holds_current_set=False)
            self._fill(shard_set, record)
        elif report.boot_id != self._proven_boot:
            self._check(shard_set, record)
        self._set_status(reachable=True, holds_current_set=True)
        fault = ""
        try:
            self._drop_older(shard_set, report)
            if (mark := find_mark()) is not None:
                self._give_mark(mark, report, book)
        except KeeperUnreachableError:
            raise
        except ShardholdError as exc:
            fault = str(exc)  # it holds its shard all the same
        self._set_status(fault=fault)

    def _drop_older(self, shard_set: ShardSet, report: KeeperReport) -> None:
        current = shard_set.label
        for label in (held.label for held in report.sets):
            if label.cluster_id == current.cluster_id and label.order < current.order:  # what came before is dead
                self._drop(label, report)

    def _drop(self, label: SetLabel, report: KeeperReport) -> None:
        self.link.drop_set(label.cluster_id, label.set_id, epoch=self._epoch, timeout=CALL_TIMEOUT)
        if self._dropped[0] != report.boot_id:
            self._dropped = report.boot_id, set()
        dropped = self._dropped[1]
        if label.set_id not in dropped and len(dropped) <= MAX_DROPPED:  # one more than that is the lie
            self._note("keeper.drop", self.member.name, f"set {label.set_number}")
            dropped.add(label.set_id)

    def _check_report(self, report: KeeperReport) -> None:
        """Accuse the keeper of a report that no true one gives.

        Raises:
            IntegrityError: It is one.
        """
        boot_id, dropped = self._dropped
        if boot_id != report.boot_id:
            dropped = set()
        kept = [held.label for held in report.sets if held.label.set_id in dropped]
        if len(report.sets) > MAX_SETS:
            lie = f"lies: it says that it holds {len(report.sets)} sets, and can hold {MAX_SETS}"
        elif kept:
            lie = f"lies: it says that it holds set {kept[0].set_number}, which it has dropped"
        elif len(dropped) > MAX_DROPPED:
            lie = f"lies: it says that it holds ever new sets, and has dropped more than {MAX_DROPPED} since it started"
        else:
            return
        self._accused_boot, self._accusation = report.boot_id, lie
        raise IntegrityError(lie)

    def _ask_mark(self, report: KeeperReport, book: MarkBook) -> None:
        asked = report.boot_id, max(report.epoch, self._epoch)
        if asked == self._asked:
            return
        mark = self.link.fetch_mark(book.cluster_id, timeout=CALL_TIMEOUT)
        self._asked = asked
        self._take_mark(mark, report, book)

    def _take_mark(self, mark: SignedMark | None, report: KeeperReport, book: MarkBook) -> None:
        try:
            book.take(self.member.name, mark)
        except MarkError as exc:
            self._accused_boot, self._accusation = report.boot_id, f"lies: {exc}"
            raise MarkError(self._accusation) from exc

    def _give_mark(self, mark: SignedMark, report: KeeperReport, book: MarkBook) -> None:
        if self._given == (mark, report.boot_id, self._epoch):
            return
        try:
            newer = self.link.put_mark(mark, epoch=self._epoch, timeout=CALL_TIMEOUT, known=report.chain_digest)
        except WrongStateError as exc:
            log.warning("keeper refuses the mark of this store", keeper=self.member.name, why=str(exc))
            self._asked = (b"", NO_EPOCH)  # it may know better: asked at the next step
            raise
        self._given = mark, report.boot_id, self._epoch
        if newer is not None:
            log.warning("keeper remembers a newer mark", keeper=self.member.name)
            self._take_mark(newer, report, book)

    def _find_accusation(self, report: KeeperReport) -> str:
        return self._accusation if report.boot_id == self._accused_boot else ""

    def _fill(self, shard_set: ShardSet, record: MemberRecord) -> None:
        with self._memory.allocate(shamir.SHARD_SIZE) as shard:
            shard_set.derive_shard(record.x, shard)
            self._proven_boot = self.link.put_shard(
                shard_set.label, shard, commitment=record.commitment, epoch=self._epoch, timeout=CALL_TIMEOUT
            )
        set_number = shard_set.record.set_number
        log.info("keeper filled", keeper=self.member.name, set_number=set_number)
        self._note("keeper.fill", self.member.name, f"set {set_number}")

    def _check(self, shard_set: ShardSet, record: MemberRecord) -> None:
        with self._memory.allocate(shamir.SHARD_SIZE) as shard:
            set_id = shard_set.record.set_id
            boot_id = self.link.fetch_shard(shard_set.label.cluster_id, set_id, into=shard, timeout=CALL_TIMEOUT)
            self._check_shard(shard, record, shard_set.label.cluster_id, set_id, boot_id)
        self._proven_boot = boot_id

    def _check_shard(
        self, shard: ProtectedBuffer, record: MemberRecord, cluster_id: bytes, set_id: bytes, boot_id: bytes
    ) -> None:
        try:
            check_shard(shard, record, cluster_id, set_id)
        except BadShardError as exc:
            self._accused_boot, self._accusation = boot_id, str(exc)
            raise

    def _fetch_report(self) -> KeeperReport:
        report = self.link.fetch_report(timeout=CALL_TIMEOUT)
        self._set_status(
            reachable=True,
            holds_current_set=self.status.holds_current_set and report.boot_id == self._proven_boot,
            is_empty=False,
            cluster_id=report.cluster_id,
            version=report.version,
            memory_protection=report.memory_protection,
            epoch=report.epoch,
        )
        return report

    def _guarded(self, step: Callable[[], object], pause: float) -> float:
        try:
            step()
        except KeeperUnreachableError as exc:
            # One text, whatever the network says this time: each new one would be a line in log and audit.
            log.debug("keeper does not answer", keeper=self.member.name, error=str(exc))
            self._set_status(reachable=False, holds_current_set=False, fault="does not answer")
        except DeniedError as exc:
            self._set_status(reachable=True, holds_current_set=False, fault=f"does not accept this nexus: {exc}")
        except ShardholdError as exc:
            self._set_status(reachable=True, holds_current_set=False, fault=str(exc))
        return pause

    def _set_status(self, **changes: Any) -> None:
        before = self.status
        self.status = replace(before, **changes)
        if self.status.fault != before.fault:
            self._tell(self.status.fault)

    def _tell(self, fault: str) -> None:
        if fault:
            log.warning("keeper fault", keeper=self.member.name, fault=fault)
        else:
            log.info("keeper well", keeper=self.member.name)
        self._note("keeper.fault" if fault else "keeper.well", self.member.name, fault)
