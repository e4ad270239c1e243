"""Operations as people ask for them: checked, authorised, audited, begun once, and refused with a reason."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from common.errors import (
    AuditUnavailableError,
    DeniedError,
    InvalidArgumentError,
    OperationRefusedError,
    SealedError,
    StoreUnavailableError,
    WrongStateError,
)
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys.operation.record import Outcome, Step, WaiverKind
from nexus.keys.records import SetState
from nexus.keys.shard_set import Member
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import NEW_ID, NOTHING, Resharing, join, make_keeper
from tests.nexus.cluster import count_free, is_wiped
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER
from tests.nexus.played_keepers import PlayedKeeper

NEWCOMER = Member("keeper-6", "spiffe://example.org/shardhold/keeper/keeper-6", "keeper-6.test:8443")
OTHER_ID = bytes(16)
GONE = ResharePlan(remove=("keeper-5",))


def refuse(resharing: Resharing, plan: ResharePlan = NOTHING, **options: Any) -> OperationRefusedError:
    """Ask for a reshare that is refused, and return with what; nothing has changed then."""
    before = resharing.cluster.load()
    with pytest.raises(OperationRefusedError) as refused:
        resharing.begin(plan, **options)
    assert resharing.cluster.load() == before
    return refused.value


def test_a_reshare_begins_with_one_change(resharing: Resharing) -> None:
    """Its record, the pending set, the numbers and the caller's entry are committed together."""
    view = resharing.begin(ResharePlan(threshold=4))
    assert (view.record.id, view.record.step, view.record.actor) == (NEW_ID, Step.PREPARED, SUPERUSER.spiffe_id)
    assert (view.threshold, view.keepers, view.record.quorum) == (4, 5, 5)
    assert (view.record.source.set_number, view.record.target.set_number) == (1, 2)
    assert resharing.states == {1: SetState.CURRENT, 2: SetState.PENDING}
    ((revision, entry),) = resharing.core.list_change_entries()
    assert revision == resharing.facts.meta.revision
    assert (entry.actor, entry.action, entry.detail) == (SUPERUSER.spiffe_id, "root.start", "reshare: drill")


@pytest.mark.parametrize(
    ("plan", "options", "message"),
    [
        pytest.param(NOTHING, {"operation_id": bytes(15)}, "operation_id is 15 bytes, want 16", id="short id"),
        pytest.param(NOTHING, {"operation_id": b""}, "operation_id is 0 bytes", id="no id"),
        pytest.param(NOTHING, {"reason": "x" * 257}, "reason", id="long reason"),
        pytest.param(NOTHING, {"reason": "two\nlines"}, "reason", id="reason of two lines"),
        pytest.param(ResharePlan(threshold=1), {}, "threshold: got 1 of 5", id="threshold of one"),
        pytest.param(ResharePlan(threshold=6), {}, "threshold: got 6 of 5", id="threshold above the keepers"),
        pytest.param(ResharePlan(remove=("keeper-9",)), {}, "remove: got 'keeper-9'", id="a stranger leaves"),
        pytest.param(ResharePlan(lost=("keeper-1",)), {}, "lost: got 'keeper-1'", id="lost, but stays"),
        pytest.param(ResharePlan(add=(join(5),)), {}, "keepers' name: 'keeper-5'", id="joins twice"),
        pytest.param(
            ResharePlan(add=(replace(join(6), spiffe_id="spiffe://elsewhere.org/k"),)),
            {},
            r"add\[0\].spiffe_id",
            id="foreign trust domain",
        ),
    ],
)
def test_a_wrong_argument_is_named_and_begins_nothing(
    resharing: Resharing, plan: ResharePlan, options: dict[str, Any], message: str
) -> None:
    """No number is used up, and no keeper hears of it."""
    before = resharing.cluster.load()
    with pytest.raises(InvalidArgumentError, match=message):
        resharing.begin(plan, **options)
    assert resharing.cluster.load() == before
    assert resharing.core.lifecycle.require_serving().others.pending is None


@pytest.mark.parametrize("caller", [RECOVER, AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_operators_and_superusers_begin_end_and_hurry_operations(resharing: Resharing, caller: Caller) -> None:
    """Each denial is audited, and changes nothing."""
    resharing.begin()
    before = resharing.cluster.load()
    operations = resharing.core.operations
    with pytest.raises(DeniedError, match="operator or superuser"):
        operations.reshare(caller, OTHER_ID, NOTHING, "", dry_run=True)
    with pytest.raises(DeniedError, match="operator or superuser"):
        operations.abort(caller, NEW_ID, "")
    with pytest.raises(DeniedError, match="operator or superuser"):
        operations.proceed(caller, NEW_ID, with_threshold=True)
    if caller is not AUDITOR:
        with pytest.raises(DeniedError, match="auditor or operator or superuser"):
            operations.describe(caller)
    entries = [entry for entry in resharing.core.list_entries() if entry.actor == caller.spiffe_id]
    assert [(entry.action, entry.decision) for entry in entries][:3] == [
        ("root.start", "deny"),
        ("root.abort", "deny"),
        ("root.continue", "deny"),
    ]
    assert resharing.cluster.load() == before


@pytest.mark.parametrize(
    "plan",
    [
        pytest.param(ResharePlan(add=(NEWCOMER,)), id="a keeper joins"),
        pytest.param(ResharePlan(add=(NEWCOMER,), remove=("keeper-1",)), id="one takes a place"),
        pytest.param(ResharePlan(threshold=2), id="a lower threshold"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_only_a_superuser_lets_keepers_in_or_lowers_the_threshold(
    resharing: Resharing, plan: ResharePlan, dry_run: bool
) -> None:
    """Whoever chooses enough keepers has the root key."""
    before = resharing.cluster.load()
    with pytest.raises(DeniedError, match="role superuser"):
        resharing.core.operations.reshare(OPERATOR, NEW_ID, plan, "", dry_run=dry_run)
    assert resharing.cluster.load() == before
    (entry,) = resharing.core.list_entries()
    assert (entry.action, entry.decision) == ("root.start", "deny")


def test_a_keeper_that_joins_has_to_answer(resharing: Resharing) -> None:
    """A mistyped address would become a member, and a quorum without it would go on."""
    plan = ResharePlan(add=(NEWCOMER,))
    with pytest.raises(OperationRefusedError, match="joining keepers: keeper-6 does not answer") as refused:
        resharing.begin(plan)
    assert refused.value.reason == "KEEPERS_SHORT"


def test_members_chosen_by_a_set_that_was_replaced_meanwhile_are_refused(resharing: Resharing) -> None:
    """While a keeper that joins was asked, somebody raised the threshold: that is not undone in silence."""
    slow = PlayedKeeper(NEWCOMER.name)
    slow.go.clear()
    resharing.core.keepers[slow.name] = slow
    with ThreadPoolExecutor(1) as executor:
        asked = executor.submit(resharing.begin, ResharePlan(add=(NEWCOMER,)), operation_id=OTHER_ID)
        wait_until(lambda: slow.count("fetch_report") == 1)
        resharing.begin(ResharePlan(threshold=4))
        resharing.drive_to_rest()
        slow.go.set()
        with pytest.raises(OperationRefusedError, match="another one meanwhile") as refused:
            asked.result()
    assert refused.value.reason == "OPERATION_MOVED"
    assert resharing.facts.current_set.threshold == 4
    assert resharing.operation is None


def test_the_same_id_begins_one_operation(resharing: Resharing) -> None:
    """A caller who lost the answer asks again, and learns how it ended if it has."""
    first = resharing.begin()
    assert resharing.begin().record == first.record
    assert resharing.actions() == ["root.start"]
    resharing.drive_to(None)
    with pytest.raises(WrongStateError, match="has ended: it is settled"):
        resharing.begin()
    assert resharing.begin(operation_id=OTHER_ID).record.target.set_number == 3


def test_a_second_operation_is_refused(resharing: Resharing) -> None:
    """There is one at a time."""
    resharing.begin()
    refused = refuse(resharing, operation_id=OTHER_ID)
    assert (refused.reason, str(refused)) == ("OPERATION_RUNNING", "operation: a reshare is prepared")


def test_too_few_keepers_refuse_it(resharing: Resharing) -> None:
    """A set that a restart could lose is not begun."""
    for keeper in resharing.keepers[:2]:
        keeper.is_reachable = False
    wait_until(lambda: sum(seat.status.reachable for seat in resharing.core.pool.seats) == 3)
    refused = refuse(resharing)
    assert (refused.reason, "3 of 5" in str(refused)) == ("KEEPERS_SHORT", True)


def test_a_new_keeper_that_does_not_answer_refuses_it(resharing: Resharing) -> None:
    """A new member is asked before it is needed."""
    refused = refuse(resharing, ResharePlan(add=(join(6),), remove=("keeper-1", "keeper-2")))
    assert refused.reason == "KEEPERS_SHORT"


def test_a_keeper_of_an_older_program_refuses_it(resharing: Resharing) -> None:
    """It could not be told that it is no member of the current set."""
    resharing.keepers[0].put_format = 1
    wait_until(lambda: resharing.core.pool.seats[0].status.is_too_old)
    refused = refuse(resharing)
    assert (refused.reason, "keeper-1" in str(refused)) == ("KEEPER_TOO_OLD", True)


def test_a_full_disk_refuses_it(resharing: Resharing) -> None:
    """There has to be room for what an operation makes."""
    resharing.core.disk_free = (4 << 20) - 1
    assert refuse(resharing).reason == "DISK_SHORT"
    resharing.core.disk_free += 1
    resharing.begin()


def test_full_memory_refuses_it(resharing: Resharing, memory: ProtectedMemory) -> None:
    """There has to be room for the new points."""
    with memory.allocate(memory.free - 1024):
        assert refuse(resharing).reason == "MEMORY_SHORT"


def test_a_dry_run_changes_nothing_and_says_all_that_stands_against_it(
    resharing: Resharing, memory: ProtectedMemory
) -> None:
    """Each check is named, with the reason of those that refuse; the call is audited as a read."""
    resharing.core.disk_free = 0
    for keeper in resharing.keepers[:3]:
        keeper.is_reachable = False
    wait_until(lambda: sum(seat.status.reachable for seat in resharing.core.pool.seats) == 2)
    before = resharing.cluster.load()
    checks, view = resharing.core.operations.reshare(OPERATOR, NEW_ID, NOTHING, "drill", dry_run=True)
    assert view is None
    assert {check.name: check.reason for check in checks if check.reason} == {
        "keepers": "KEEPERS_SHORT",
        "disk": "DISK_SHORT",
    }
    assert {"operation", "memory", "keeper versions", "control rows"} <= {check.name for check in checks}
    assert resharing.cluster.load() == before
    (entry,) = resharing.core.list_entries()
    assert (entry.action, entry.outcome, entry.detail) == ("root.start", "ok", "reshare, dry run: drill")
    assert resharing.core.lifecycle.require_serving().others.pending is None


def test_a_dry_run_beside_an_operation_says_that_it_runs(resharing: Resharing) -> None:
    """The id of the running operation does not make it that operation."""
    resharing.begin()
    checks, view = resharing.core.operations.reshare(OPERATOR, NEW_ID, NOTHING, "", dry_run=True)
    assert view is None
    assert [check.reason for check in checks if check.reason] == ["OPERATION_RUNNING"]


@pytest.mark.parametrize("flag", ["cannot_commit", "cannot_audit"])
def test_what_is_not_committed_is_not_begun(resharing: Resharing, memory: ProtectedMemory, flag: str) -> None:
    """The points are wiped, no keeper is given a shard, and the failure is audited as a read."""
    free = count_free(memory)
    setattr(resharing.store, flag, True)
    with pytest.raises(StoreUnavailableError) as failed:  # whose traceback keeps what the call had
        resharing.begin()
    setattr(resharing.store, flag, False)
    assert (failed.value.reason, count_free(memory)) == ("STORE_UNAVAILABLE", free)
    assert (resharing.operation, resharing.states) == (None, {1: SetState.CURRENT})
    assert resharing.core.lifecycle.require_serving().others.pending is None
    assert [entry.outcome for entry in resharing.core.list_entries()] == ["STORE_UNAVAILABLE"]
    resharing.begin()


def test_nothing_begins_while_the_audit_fails_and_an_abort_may_use_its_reserve(resharing: Resharing) -> None:
    """What stops an operation must not depend on a full disk."""
    resharing.begin()
    with resharing.core.audit_failing():
        with pytest.raises(AuditUnavailableError):
            resharing.begin(operation_id=OTHER_ID)
        with pytest.raises(AuditUnavailableError):
            resharing.core.operations.proceed(OPERATOR, NEW_ID, with_threshold=True)
        resharing.core.operations.abort(OPERATOR, NEW_ID, "disk is full")
    assert resharing.step is None


def test_the_root_key_is_described_before_during_and_after(resharing: Resharing) -> None:
    """Who holds the new shards is shown, and how the last operation ended."""
    operations = resharing.core.operations
    before = operations.describe(AUDITOR)
    assert (before.current.set_number, before.operation, before.last) == (1, None, None)
    resharing.keepers[4].is_reachable = False
    resharing.begin()
    resharing.drive_to(Step.DISTRIBUTED)
    during = operations.describe(AUDITOR).operation
    assert during is not None
    assert (during.record.step, during.keepers, len(during.holders)) == (Step.DISTRIBUTED, 5, 4)
    resharing.keepers[4].is_reachable = True
    resharing.drive_to(None)
    after = operations.describe(AUDITOR)
    assert (after.current.set_number, after.operation) == (2, None)
    assert after.last is not None
    assert (after.last.id, after.last.outcome, after.last.detail) == (NEW_ID, Outcome.SETTLED, "")


@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED])
def test_an_abort_takes_back_what_is_not_flipped(resharing: Resharing, step: Step, memory: ProtectedMemory) -> None:
    """The set is dead and its number used up; keepers drop it, its points are wiped, and the store is scrubbed."""
    free = count_free(memory)
    resharing.begin()
    resharing.drive_to(step)
    resharing.core.operations.abort(SUPERUSER, NEW_ID, "wrong day")
    assert resharing.states == {1: SetState.CURRENT, 2: SetState.DEAD}
    ended = resharing.ended
    assert ended is not None
    assert (ended.outcome, ended.detail) == (Outcome.ABORTED, f"{SUPERUSER.spiffe_id}: wrong day")
    resharing.drive_to_rest()
    wait_until(lambda: set(map(tuple, resharing.count_sets().values())) == {(1,)})
    assert (count_free(memory), resharing.store.scrubs) == (free, 1)
    _, entry = resharing.core.list_change_entries()[-2]
    assert (entry.actor, entry.action, entry.detail) == (
        SUPERUSER.spiffe_id,
        "root.abort",
        f"{NEW_ID.hex()[:8]}: wrong day",
    )
    assert resharing.begin(operation_id=OTHER_ID).record.target.set_number == 3


def test_a_flipped_operation_is_not_taken_back(resharing: Resharing) -> None:
    """Keepers may have dropped the set before it by then."""
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    before = resharing.cluster.load()
    with pytest.raises(OperationRefusedError, match="no way back") as refused:
        resharing.core.operations.abort(SUPERUSER, NEW_ID, "")
    assert refused.value.reason == "OPERATION_FLIPPED"
    assert resharing.cluster.load() == before


def test_only_the_operation_that_was_looked_at_is_taken_back_or_hurried(resharing: Resharing) -> None:
    """Another id, as of an operation that has ended meanwhile, is refused."""
    resharing.begin()
    operations = resharing.core.operations
    calls: list[Callable[[], object]] = [
        lambda: operations.abort(OPERATOR, OTHER_ID, ""),
        lambda: operations.proceed(OPERATOR, OTHER_ID, with_threshold=True),
    ]
    for call in calls:
        with pytest.raises(OperationRefusedError, match="not in progress") as refused:
            call()
        assert refused.value.reason == "NO_OPERATION"
    with pytest.raises(InvalidArgumentError, match="operation_id is 3 bytes"):
        operations.abort(OPERATOR, b"abc", "")
    assert resharing.step is Step.PREPARED


def test_an_operator_lets_it_go_on_with_the_threshold(resharing: Resharing) -> None:
    """Three of five are enough on their word, at once, and nothing waits for the other two."""
    resharing.begin()
    for keeper in resharing.keepers[3:]:
        keeper.refusal = "not today"
    view = resharing.core.operations.proceed(OPERATOR, NEW_ID, with_threshold=True)
    assert view is not None
    assert view.record.waives(WaiverKind.THRESHOLD)
    resharing.drive_to(Step.FLIPPED)
    entry = resharing.core.list_change_entries()[1][1]
    assert (entry.action, entry.detail) == ("root.continue", "with-threshold")


def test_only_a_superuser_settles_without_a_proof(resharing: Resharing) -> None:
    """While the new key is in memory, their word stands for the keepers' proof."""
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    for keeper in resharing.keepers:
        keeper.is_reachable = False
    operations = resharing.core.operations
    with pytest.raises(DeniedError, match="role superuser"):
        operations.proceed(OPERATOR, NEW_ID, without_proof=True)
    assert resharing.step is Step.FLIPPED
    operations.proceed(SUPERUSER, NEW_ID, without_proof=True)
    resharing.drive_to(None)
    ended = resharing.ended
    assert ended is not None
    assert ended.outcome is Outcome.SETTLED


@pytest.mark.parametrize(
    ("step", "waiver"),
    [
        pytest.param(Step.PREPARED, {"without_proof": True}, id="no proof before the flip"),
        pytest.param(Step.FLIPPED, {"with_threshold": True}, id="threshold after the flip"),
    ],
)
def test_a_word_that_changes_nothing_at_this_step_is_refused(
    resharing: Resharing, step: Step, waiver: dict[str, Any]
) -> None:
    """Nobody has to wonder whether it counts later."""
    resharing.begin()
    resharing.drive_to(step)
    with pytest.raises(OperationRefusedError, match="changes nothing at") as refused:
        resharing.core.operations.proceed(SUPERUSER, NEW_ID, **waiver)
    assert refused.value.reason == "WAIVER_INVALID"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({}, "nothing to go on without", id="nothing"),
        pytest.param({"with_threshold": True, "without_proof": True}, "before the flip", id="both words"),
        pytest.param(
            {"lost": ("keeper-9",)}, "lost: got 'keeper-9', want a keeper that leaves", id="a stranger is lost"
        ),
        pytest.param({"lost": ("keeper-1",)}, "lost: got 'keeper-1', want a keeper that leaves", id="one that stays"),
        pytest.param({"lost": ("keeper-5\n" * 9,)}, r"lost\[0\]", id="no name is lost"),
        pytest.param({"lost": ("keeper-5",) * 256}, "lost: got 256 keepers", id="very many are lost"),
    ],
)
def test_a_wrong_word_is_named(resharing: Resharing, arguments: dict[str, Any], message: str) -> None:
    """It changes nothing."""
    resharing.begin()
    before = resharing.cluster.load()
    with pytest.raises(InvalidArgumentError, match=message):
        resharing.core.operations.proceed(SUPERUSER, NEW_ID, **arguments)
    assert resharing.cluster.load() == before


def test_a_keeper_that_leaves_is_waited_for_until_it_is_given_up(resharing: Resharing) -> None:
    """Its row of the dead set stays as long as it may hold a shard, also when no operation is in progress any more."""
    resharing.begin(GONE)
    resharing.drive_to(Step.FLIPPED)
    resharing.keepers[4].is_reachable = False
    resharing.drive_to(None)
    resharing.drive(until=lambda: all(held == [2] for held in list(resharing.count_sets().values())[:4]))
    assert resharing.states == {1: SetState.DEAD, 2: SetState.CURRENT}
    assert resharing.core.operations.proceed(OPERATOR, b"", lost=("keeper-5",)) is None
    resharing.drive_to_rest()
    assert [seat.member.name for seat in resharing.core.pool.seats] == [f"keeper-{i}" for i in range(1, 5)]


def test_a_keeper_is_given_up_while_its_operation_is_in_progress(resharing: Resharing) -> None:
    """It leaves with the pending set; before the flip its shard is of the current one."""
    resharing.begin(GONE)
    resharing.core.operations.proceed(OPERATOR, b"", lost=("keeper-5",))
    resharing.keepers[4].is_reachable = False
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}


def test_a_keeper_that_is_lost_from_the_start_is_not_waited_for(resharing: Resharing) -> None:
    """Only its row says that it may hold a shard yet."""
    resharing.keepers[4].is_reachable = False
    resharing.begin(ResharePlan(remove=("keeper-5",), lost=("keeper-5",)))
    resharing.drive_to_rest()
    assert resharing.states == {2: SetState.CURRENT}
    assert resharing.count_sets()["keeper-5"] == [1]


def test_a_keeper_takes_the_place_of_another(resharing: Resharing) -> None:
    """The new one is filled although it never held the current set; the old one drops what it held."""
    new = make_keeper(6)
    resharing.core.keepers[new.name] = new
    resharing.begin(ResharePlan(add=(join(6),), remove=("keeper-1",)))
    resharing.drive_to_rest()
    wait_until(lambda: not resharing.keepers[0].sets)
    assert len(new.sets) == 1
    assert [one.name for one in resharing.facts.current_set.members] == [f"keeper-{i}" for i in range(2, 7)]


def test_a_keeper_of_the_same_name_takes_its_place(resharing: Resharing) -> None:
    """A keeper is the same by its name and SPIFFE ID; the one that leaves keeps its seat until it is empty."""
    other = Member("keeper-1", "spiffe://example.org/shardhold/keeper/second", "second.test:8443")
    resharing.begin(ResharePlan(add=(other,), remove=("keeper-1",)))
    seats = [seat.member for seat in resharing.core.pool.seats]
    assert [member.spiffe_id for member in seats if member.name == "keeper-1"]
    resharing.drive_to_rest()
    assert other.identity in {(one.name, one.spiffe_id) for one in resharing.facts.current_set.members}


def test_a_sealed_nexus_says_nothing_of_operations(resharing: Resharing, memory: ProtectedMemory) -> None:
    """A seal takes the pending set back, and its points are wiped with every other key."""
    resharing.begin()
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    calls: list[Callable[[], object]] = [
        lambda: resharing.core.operations.describe(SUPERUSER),
        lambda: resharing.core.operations.abort(SUPERUSER, NEW_ID, ""),
        lambda: resharing.begin(operation_id=os.urandom(16)),
    ]
    for call in calls:
        with pytest.raises(SealedError):
            call()
    assert is_wiped(memory)
