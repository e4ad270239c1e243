"""One keeper as the nexus sees it, and the four duties that the nexus may have towards it.

- Watch: ask for its status, before there is a set.
- Collect: during a recovery, ask for its shard until enough shards are there.
- Keep: make it hold what the plan says (`nexus.keepers.plan`), in this order: give it the newest rollback mark, fill it
  with its shard of the current set and then of the pending one, drop what is dead. A shard that this nexus did not give
  it is checked once for each of its boots. A keeper that is not pinned yet takes a mark only after its first shard. A
  keeper that did not take the mark, or answered with a newer one, drops nothing.
- Empty: while sealed, drop every set that it holds, whatever else is wrong with it.

In each duty but the first it is asked for its rollback mark (`nexus.keepers.mark_exchange`). What counts as a lie, and
how long, is in `nexus.keepers.conduct`. A keeper that has seen a higher epoch refuses whatever this nexus wants to
change.

A keeper is trusted only as far as its shard matches its commitment. What is wrong with it is a sentence in `fault`; a
fault never stops the others.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import structlog

from common.clock import Clock
from common.errors import (
    BadShardError,
    DeniedError,
    KeeperUnreachableError,
    NotFoundError,
    SealedError,
    SetNotNewerError,
    ShardholdError,
)
from common.forms.delivery import PUT_FORMAT, SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from common.keys import shamir
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keepers.collection import Collection
from nexus.keepers.conduct import Conduct
from nexus.keepers.link import CALL_TIMEOUT, KeeperLink, KeeperReport
from nexus.keepers.mark_exchange import MarkExchange
from nexus.keepers.marks import MarkBook
from nexus.keepers.notes import Note, note_nothing
from nexus.keepers.plan import Holding, Plan, find_record
from nexus.keys.records import MemberRecord
from nexus.keys.shard_set import Member, ShardSet, check_shard

POLL_INTERVAL = 1.0  # seconds between two polls
RETRY_PAUSE = (0.1, 1.0)  # seconds, full jitter, while recovering
ACCUSED = "ACCUSED"  # the reason of a fault that stays until the keeper starts anew: it has lied

_NO_FAULT: Final = {"fault": "", "fault_reason": ""}

FindMark = Callable[[], SignedMark | None]  # the newest mark to give; None when there is none to give any more

log = structlog.get_logger("keepers")


@dataclass(frozen=True, slots=True)
class SeatStatus:
    """What is known of one keeper."""

    reachable: bool = False
    holds_current_set: bool = False
    fault: str = ""
    fault_reason: str = ""  # stable: the reason of the error behind the fault, or ACCUSED; empty: there is no fault
    is_empty: bool = False  # while it is emptied, or leaves: it held no set of this cluster after the last step
    cluster_id: bytes = b""  # that it serves until it ends; empty: none yet
    version: str = ""
    memory_protection: int = 0
    epoch: StoreEpoch = NO_EPOCH  # the highest that it says it has seen
    put_format: int = 0  # highest of PutShard that it takes; 0: not known yet
    holdings: Mapping[bytes, Holding] = field(default_factory=dict)  # by set id: what it proved to hold in this boot
    reported: frozenset[bytes] | None = None  # ids of the sets that it last said it holds; None: it said nothing yet
    refuses_current_set: bool = False  # it has held a newer one
    marked: StoreEpoch = NO_EPOCH  # of the store when it took a mark last, in this boot
    mark: bytes = b""  # the last that it took in this boot, encoded; empty: none
    marked_at: float | None = None  # monotonic seconds at which it last had the newest mark; None: not yet

    @property
    def is_too_old(self) -> bool:
        """Whether its program cannot join the current keepers."""
        return self.reachable and self.put_format < PUT_FORMAT


class Seat:
    """Used by one thread; `status` may be read by any, and `demand_proof` called."""

    def __init__(
        self, member: Member, link: KeeperLink, memory: ProtectedMemory, clock: Clock, note: Note = note_nothing
    ) -> None:
        """*note* hears what was done with the keeper and what went wrong, for the audit."""
        self.member = member
        self._note = note
        self.link = link
        self.status = SeatStatus()
        self._memory = memory
        self._clock = clock
        self._epoch = NO_EPOCH  # of the store, at the duty of now
        self._current_set = b""  # at the duty of now
        self._proved: dict[bytes, Holding] = {}  # by set id, the last proof, also while it does not answer
        self._demanded: Mapping[bytes, float] = {}  # by set id: when a new proof was demanded
        self._is_retired = False
        self._conduct = Conduct()
        self._marks = MarkExchange(link, self._conduct)

    def watch(self) -> float:
        """Ask how the keeper is; return the seconds until the next step."""
        return self._guarded(self._watch, POLL_INTERVAL)

    def collect(self, collection: Collection, book: MarkBook) -> float:
        """Offer the keeper's shard to *collection*; return the seconds until the next step."""
        return self._guarded(lambda: self._collect(collection, book), _draw_pause())

    def offer(self, collection: Collection) -> float:
        """Offer the keeper's shard to *collection*, and nothing else; return the seconds until the next step."""
        return self._guarded(lambda: self._offer(collection), _draw_pause())

    def keep(self, plan: Plan, book: MarkBook, find_mark: FindMark, epoch: StoreEpoch) -> float:
        """Make the keeper hold what *plan* says; return the seconds until the next step. *epoch* is the store's."""
        self._epoch = epoch
        return self._guarded(lambda: self._keep(plan, book, find_mark), POLL_INTERVAL)

    def empty(self, book: MarkBook, last_mark: SignedMark | None, epoch: StoreEpoch) -> float:
        """Make the keeper drop what it holds, after it took *last_mark*; return the seconds until the next step."""
        self._epoch = epoch
        return self._guarded(lambda: self._empty(book, last_mark), POLL_INTERVAL)

    def demand_proof(self, set_id: bytes, at: float) -> None:
        """Let the keeper show its shard of a set anew if it did so before *at*, in seconds, while it is to hold it."""
        self._demanded = {**self._demanded, set_id: at}

    def retire(self) -> None:
        """Close the link. What fails from here on is no fault of the keeper, and nobody hears of it."""
        self._is_retired = True
        self.link.close()

    def _watch(self) -> None:
        self._fetch_report()
        self._set_status(**_NO_FAULT, marked=NO_EPOCH)

    def _collect(self, collection: Collection, book: MarkBook) -> None:
        self._turn_to(collection.set_id)
        self._offer(collection)
        report = self._fetch_report()
        self._conduct.check_report(report)
        self._marks.ask(report, book, self._epoch)
        self._set_status(**_accuse(self._conduct.find_accusation(report)))

    def _offer(self, collection: Collection) -> None:
        record = collection.find(self.member)
        if record is None or collection.has(record.x):
            return
        buffer = self._memory.allocate(shamir.SHARD_SIZE)
        try:
            self._fetch_shard(collection.cluster_id, collection.set_id, record, into=buffer)
        except NotFoundError:
            buffer.release()
            collection.lacking.add(self.member.name)
            self._set_status(reachable=True)
            self._forget(collection.set_id)
            return
        except BaseException:
            buffer.release()
            raise
        self._show_holding(collection.set_id)
        collection.offer(record.x, buffer)

    def _empty(self, book: MarkBook, last_mark: SignedMark | None) -> None:
        self._proved.clear()
        report = self._fetch_report()
        held = [one.label for one in report.sets if one.label.cluster_id == book.cluster_id]
        try:
            self._conduct.check_report(report)
            self._marks.ask(report, book, self._epoch)
            if report.cluster_id == book.cluster_id and last_mark is not None:
                self._marks.give(last_mark, report, book, self._epoch)
            fault = _accuse(self._conduct.find_accusation(report))
        except ShardholdError as exc:
            fault = _blame(exc)
        for label in held:
            self._drop(label, report)
        self._set_status(holds_current_set=False, holdings={}, is_empty=True, **fault)

    def _keep(self, plan: Plan, book: MarkBook, find_mark: FindMark) -> None:
        self._turn_to(plan.current.record.set_id)
        self._proved = {set_id: one for set_id, one in self._proved.items() if set_id in plan.set_ids}
        report = self._fetch_report()
        is_pinned = report.cluster_id == book.cluster_id
        if not is_pinned and not plan.is_member(self.member):
            self._set_status(is_empty=True, **_NO_FAULT)  # it has nothing of this cluster, and gets nothing
            return
        self._conduct.check_report(report)
        self._marks.ask(report, book, self._epoch)
        if accusation := self._conduct.find_accusation(report):
            self._set_status(holds_current_set=False, holdings={}, **_accuse(accusation))
            return
        mark = find_mark()
        faults = [self._try(lambda: self._marks.give(mark, report, book, self._epoch))] if is_pinned else []
        faults.append(self._hold_sets(plan, report))
        if not is_pinned:
            faults.append(self._try(lambda: self._marks.give(mark, report, book, self._epoch)))
        if self._marks.is_followed(mark, report, self._epoch):
            self._set_status(marked=self._epoch, mark=self._marks.find_taken(report.boot_id))
            if mark is not None:
                self._set_status(marked_at=self._clock.monotonic())
            faults.append(self._try(lambda: self._drop_dead(plan, report)))
        is_empty = not plan.is_member(self.member) and not self.status.reported
        self._set_status(is_empty=is_empty, refuses_current_set=False, **_blame(next(filter(None, faults), None)))

    def _hold_sets(self, plan: Plan, report: KeeperReport) -> ShardholdError | None:
        """See to it that the keeper holds its shards; return what went wrong with the pending set.

        Raises:
            ShardholdError: It does not hold its shard of the current set.
        """
        current_set_id = b""
        if record := find_record(plan.current.record.members, self.member):
            current_set_id = plan.current.record.set_id
            self._hold(plan.current, record, report, current_set_id)
        pending = plan.pending
        if pending is None or (record := find_record(pending.record.members, self.member)) is None:
            return None
        found = record
        return self._try(lambda: self._hold(pending, found, report, current_set_id))

    def _hold(self, shard_set: ShardSet, record: MemberRecord, report: KeeperReport, current_set_id: bytes) -> None:
        set_id = shard_set.record.set_id
        if all(held.label.set_id != set_id for held in report.sets):
            self._forget(set_id)
            self._fill(shard_set, record, report, current_set_id)
        if not self._is_proved(set_id, report):
            with self._memory.allocate(shamir.SHARD_SIZE) as shard:
                self._fetch_shard(shard_set.label.cluster_id, set_id, record, into=shard)
        self._show_holding(set_id)

    def _fill(self, shard_set: ShardSet, record: MemberRecord, report: KeeperReport, current_set_id: bytes) -> None:
        set_id, given_at = shard_set.record.set_id, self._clock.monotonic()
        with self._memory.allocate(shamir.SHARD_SIZE) as shard:
            shard_set.derive_shard(record.x, shard)
            boot_id = self.link.put_shard(
                shard_set.label,
                shard,
                commitment=record.commitment,
                current_set_id=current_set_id,
                epoch=self._epoch,
                put_format=report.put_format,
                timeout=CALL_TIMEOUT,
            )
        if set_id == self._current_set and set_id not in self._demanded:
            self._proved[set_id] = Holding(boot_id, given_at)  # else it has to show that it holds what it took
        set_number = shard_set.record.set_number
        log.info("keeper filled", keeper=self.member.name, set_number=set_number)
        self._note("keeper.fill", self.member.name, f"set {set_number}")

    def _fetch_shard(self, cluster_id: bytes, set_id: bytes, record: MemberRecord, *, into: ProtectedBuffer) -> None:
        """Fetch a shard, hold it against its commitment, and remember the proof."""
        asked_at = self._clock.monotonic()
        boot_id = self.link.fetch_shard(cluster_id, set_id, into=into, timeout=CALL_TIMEOUT)
        try:
            check_shard(into, record, cluster_id, set_id)
        except BadShardError as exc:
            self._conduct.accuse(boot_id, str(exc))
            raise
        self._proved[set_id] = Holding(boot_id, asked_at)

    def _is_proved(self, set_id: bytes, report: KeeperReport) -> bool:
        proof = self._proved.get(set_id)
        if proof is None or proof.boot_id != report.boot_id:
            return False
        return proof.proved_at >= self._demanded.get(set_id, proof.proved_at)

    def _show_holding(self, set_id: bytes) -> None:
        holdings = {**self.status.holdings, set_id: self._proved[set_id]}
        reported = (self.status.reported or frozenset()) | {set_id}
        self._set_status(reachable=True, holdings=holdings, reported=reported)
        if set_id == self._current_set:
            self._set_status(holds_current_set=True)

    def _forget(self, set_id: bytes) -> None:
        self._proved.pop(set_id, None)
        holdings = {one: proof for one, proof in self.status.holdings.items() if one != set_id}
        self._set_status(holdings=holdings, holds_current_set=self._current_set in holdings)

    def _drop_dead(self, plan: Plan, report: KeeperReport) -> None:
        for label in (held.label for held in report.sets):
            if plan.is_to_drop(label):
                self._drop(label, report)

    def _drop(self, label: SetLabel, report: KeeperReport) -> None:
        was_shown = label.set_id in self.status.holdings
        self.link.drop_set(label.cluster_id, label.set_id, epoch=self._epoch, timeout=CALL_TIMEOUT)
        self._set_status(reported=(self.status.reported or frozenset()) - {label.set_id})
        self._forget(label.set_id)
        if self._conduct.note_drop(label, report, was_shown=was_shown):
            self._note("keeper.drop", self.member.name, f"set {label.set_number}")

    def _turn_to(self, current_set: bytes) -> None:
        """Take the current set of the duty; what was proved of it counts at once."""
        if current_set != self._current_set:
            self._current_set = current_set
            self._set_status(holds_current_set=current_set in self.status.holdings, refuses_current_set=False)

    def _fetch_report(self) -> KeeperReport:
        report = self.link.fetch_report(timeout=CALL_TIMEOUT)
        reported = frozenset(held.label.set_id for held in report.sets)
        holdings = {
            set_id: proof
            for set_id, proof in self.status.holdings.items()
            if proof.boot_id == report.boot_id and set_id in reported
        }
        self._set_status(
            reachable=True,
            holds_current_set=self._current_set in holdings,
            holdings=holdings,
            reported=reported,
            is_empty=False,
            cluster_id=report.cluster_id,
            version=report.version,
            memory_protection=report.memory_protection,
            epoch=report.epoch,
            put_format=report.put_format,
            mark=self._marks.find_taken(report.boot_id),
        )
        return report

    def _guarded(self, step: Callable[[], object], pause: float) -> float:
        try:
            step()
        except SealedError:
            pass  # what it was to give is withdrawn: another duty follows, and the keeper is at no fault
        except ShardholdError as exc:
            if not self._is_retired:
                self._explain(exc)
        return pause

    def _explain(self, error: ShardholdError) -> None:
        if isinstance(error, KeeperUnreachableError):
            # One text, whatever the network says this time: each new one would be a line in log and audit.
            log.debug("keeper does not answer", keeper=self.member.name, error=str(error))
            self._fail(error, "does not answer", reachable=False)
        elif isinstance(error, DeniedError):
            self._fail(error, f"does not accept this nexus: {error}")
        else:
            self._fail(error, str(error))

    def _fail(self, error: ShardholdError, fault: str, *, reachable: bool = True) -> None:
        self._set_status(
            reachable=reachable,
            holds_current_set=False,
            holdings={},
            refuses_current_set=isinstance(error, SetNotNewerError),
            fault=fault,
            fault_reason=error.reason,
        )

    def _try(self, step: Callable[[], object]) -> ShardholdError | None:
        """Take a step whose failure changes nothing of the rest; return what went wrong.

        Raises:
            KeeperUnreachableError, BadShardError: The rest does not make sense any more.
        """
        try:
            step()
        except (KeeperUnreachableError, BadShardError):
            raise
        except SealedError:  # as in `_guarded`
            return None
        except ShardholdError as exc:
            return exc
        return None

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


def _accuse(accusation: str) -> dict[str, str]:
    """Return the changes of a status that say what the keeper is accused of; empty: of nothing."""
    return {"fault": accusation, "fault_reason": ACCUSED if accusation else ""}


def _blame(error: ShardholdError | None) -> dict[str, str]:
    """Return the changes of a status that say what went wrong; None: nothing did."""
    return {"fault": str(error), "fault_reason": error.reason} if error is not None else _NO_FAULT


def _draw_pause() -> float:
    return random.uniform(*RETRY_PAUSE)  # noqa: S311 — jitter
