"""What the driver does next, as a table: where the operation is, what it remembers, what it sees."""

from dataclasses import replace
from typing import Any

import pytest

from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.next_action import (
    PATIENCE,
    Abort,
    Action,
    Commit,
    Drop,
    Fetch,
    Memory,
    Prove,
    ProveHolders,
    Put,
    PutMark,
    Scrub,
    Transition,
    View,
    Wait,
    next_action,
)
from nexus.keys.operation.record import Depth, Step, Waiver, WaiverKind
from tests.nexus.keys.operation.made import (
    DRIVER,
    NAMES,
    NOW,
    OPERATION_ID,
    OTHER,
    bring_to,
    damage,
    do,
    hold,
    make_facts,
    prove,
    read_operation,
    settle,
)

PREPARED, DISTRIBUTED, FLIPPED = (bring_to(step) for step in Step)
MAKER = {"begun": OPERATION_ID, "key_of": OPERATION_ID}
QUORUM = hold("k1", "k2", "k3", "k4")
ALL = hold(*NAMES)
STALE = hold(*NAMES, age=6.0)


def waive(facts: Facts, kind: WaiverKind) -> Facts:
    waiver = Waiver(kind, "r", "alice")
    return do(facts, transitions.waive(facts, read_operation(facts).ticket, waiver, at=NOW))


def take_over(facts: Facts) -> Facts:
    return do(facts, transitions.take_over(facts, read_operation(facts).ticket, driver=OTHER, at=NOW))


def sealed(facts: Facts) -> Facts:
    return replace(facts, meta=replace(facts.meta, sealed=True))


THRESHOLD, TAKEN, WITHOUT_PROOF = (
    waive(DISTRIBUTED, WaiverKind.THRESHOLD),
    take_over(DISTRIBUTED),
    waive(FLIPPED, WaiverKind.PROOF),
)
REHEARSED = {"proof": prove(PREPARED)}
MARKED = {"marked": (DISTRIBUTED.meta.epoch, False)}
MARKED_AFTER = {"marked": (FLIPPED.meta.epoch, True)}
LATE = PATIENCE

# Facts, memory, holders, seconds at this step, and the action, or its kind where only its words differ.
CASES = [
    pytest.param(make_facts(), {}, {}, 0, Wait, id="nothing is in progress"),
    pytest.param(sealed(FLIPPED), {"driver": OTHER}, ALL, 0, Wait, id="sealed when it was flipped"),
    pytest.param(sealed(damage(FLIPPED, records.OPERATION)), MAKER, ALL, 0, Wait, id="sealed, and it cannot be read"),
    pytest.param(damage(PREPARED, records.OPERATION), MAKER, {}, 0, Commit(Transition.HEAL), id="it cannot be read"),
    # Prepared, by the process that began it.
    pytest.param(PREPARED, MAKER, {}, 0, Put(2, frozenset(NAMES)), id="nobody holds the new set"),
    pytest.param(PREPARED, MAKER, hold("k1"), 0, Put(2, frozenset(NAMES[1:])), id="the others get it"),
    pytest.param(PREPARED, MAKER, QUORUM, 0, Fetch(2), id="a quorum holds it"),
    pytest.param(PREPARED, MAKER | {"fetched": read_operation(PREPARED).ticket}, QUORUM, 0, Prove(2), id="t came back"),
    pytest.param(PREPARED, MAKER | REHEARSED, QUORUM, 0, Commit(Transition.DISTRIBUTE), id="rehearsed"),
    pytest.param(PREPARED, MAKER | REHEARSED, {}, 0, Put(2, frozenset(NAMES)), id="rehearsed, and holders are lost"),
    pytest.param(PREPARED, {"begun": OPERATION_ID}, ALL, 0, Abort, id="it has lost the key"),
    pytest.param(damage(PREPARED, (records.SHARD_SET, "2")), MAKER, ALL, 0, Abort, id="the new set is damaged"),
    # Prepared, by another process.
    pytest.param(PREPARED, {"driver": OTHER}, ALL, 0, Abort, id="found prepared"),
    # Distributed, by the process that began it.
    pytest.param(DISTRIBUTED, MAKER | REHEARSED, QUORUM, 0, Put(2, frozenset({"k5"})), id="waits for all"),
    pytest.param(DISTRIBUTED, MAKER | REHEARSED, QUORUM, LATE, PutMark(), id="is content with a quorum after 60 s"),
    pytest.param(DISTRIBUTED, MAKER | REHEARSED, ALL, 0, PutMark(), id="all hold it"),
    pytest.param(
        DISTRIBUTED, MAKER | REHEARSED | MARKED, STALE, 0, ProveHolders(2), id="holders prove themselves last"
    ),
    pytest.param(DISTRIBUTED, MAKER | REHEARSED | MARKED, ALL, 0, Commit(Transition.FLIP), id="just proved"),
    pytest.param(DISTRIBUTED, MAKER | REHEARSED, hold("k1"), LATE, Put(2, frozenset(NAMES[1:])), id="has time"),
    pytest.param(THRESHOLD, MAKER | REHEARSED, hold("k1", "k2", "k3"), 0, PutMark(), id="t are enough"),
    pytest.param(THRESHOLD, MAKER | REHEARSED, hold("k1", "k2"), 0, Put(2, frozenset(NAMES[2:])), id="less are not"),
    # Distributed, by another process.
    pytest.param(DISTRIBUTED, {"driver": OTHER}, {}, 0, Commit(Transition.TAKE_OVER), id="found distributed"),
    pytest.param(TAKEN, {"driver": OTHER}, {}, 0, Fetch(2), id="taken over: the key comes from keepers"),
    pytest.param(TAKEN, {"driver": OTHER}, ALL, LATE, Abort, id="taken over: not in 60 s"),
    pytest.param(
        TAKEN, {"driver": OTHER, "key_of": OPERATION_ID, "proof": prove(TAKEN)}, hold("k1"), LATE, Abort, id="too few"
    ),
    pytest.param(
        TAKEN, {"driver": OTHER, "key_of": OPERATION_ID, "proof": prove(TAKEN)}, QUORUM, LATE, PutMark(), id="in time"
    ),
    pytest.param(
        TAKEN, {"driver": OTHER, "key_of": OPERATION_ID} | REHEARSED, ALL, 0, Fetch(2), id="another one's rehearsal"
    ),
    # Flipped.
    pytest.param(FLIPPED, {"driver": OTHER}, {}, 0, Commit(Transition.TAKE_OVER), id="found flipped"),
    pytest.param(FLIPPED, MAKER, ALL, 0, PutMark(), id="a mark goes out"),
    pytest.param(FLIPPED, MAKER | MARKED_AFTER, ALL, 0, Fetch(2), id="the new set comes back once more"),
    pytest.param(FLIPPED, MAKER | MARKED_AFTER | REHEARSED, ALL, 0, Fetch(2), id="a rehearsal proves nothing now"),
    pytest.param(
        FLIPPED, MAKER | MARKED_AFTER | {"proof": prove(FLIPPED)}, {}, 0, Commit(Transition.SETTLE), id="it came back"
    ),
    pytest.param(FLIPPED, MAKER | MARKED_AFTER, hold("k1"), 0, Put(2, frozenset(NAMES[1:])), id="fewer than t hold it"),
    pytest.param(
        WITHOUT_PROOF,
        MAKER | {"marked": (WITHOUT_PROOF.meta.epoch, True)},
        {},
        0,
        Commit(Transition.SETTLE),
        id="a superuser does without",
    ),
    # Settled.
    pytest.param(settle(FLIPPED), MAKER | {"is_scrub_due": True}, {}, 0, Scrub(), id="scrubs first"),
    pytest.param(settle(FLIPPED), MAKER, {}, 0, Drop(frozenset({1})), id="then keepers drop"),
]


@pytest.mark.parametrize(("facts", "memory", "holders", "seconds", "action"), CASES)
def test_the_next_action(
    facts: Facts, memory: dict[str, Any], holders: dict[str, Any], seconds: float, action: Action | type
) -> None:
    found = next_action(facts, replace(Memory(DRIVER, since=100.0), **memory), View(100.0 + seconds, holders))
    assert found == action or found.__class__ is action


@pytest.mark.parametrize("step", [PREPARED, DISTRIBUTED], ids=["prepared", "distributed"])
@pytest.mark.parametrize(
    "key",
    [
        (records.SHARD_SET, "2"),
        (records.GENERATION, "2"),
        (records.KEYRING, "2"),
        (records.ESCROW, "2"),
        (records.CANARY, "3"),
    ],
    ids="/".join,
)
def test_an_operation_ends_when_what_it_has_staged_is_damaged(step: Facts, key: records.Key) -> None:
    """Its flip would be refused for ever."""
    memory = Memory(DRIVER, begun=OPERATION_ID, key_of=OPERATION_ID, proof=prove(PREPARED))
    assert isinstance(next_action(damage(step, key), memory, View(0.0, ALL)), Abort)


def test_rows_of_dead_sets_go_once_nobody_holds_them() -> None:
    facts = settle(FLIPPED)
    view = View(0.0, gone={1: frozenset(NAMES)})
    assert next_action(facts, Memory(DRIVER), view) == Commit(Transition.FORGET_SETS)


@pytest.mark.parametrize("depth", list(Depth))
def test_every_commit_that_is_asked_for_is_accepted(depth: Depth) -> None:
    """From `prepared` to the end, with evidence as the driver has it at each step."""
    facts, seen = bring_to(Step.PREPARED, depth), []
    memory: dict[str, Any] = {"driver": DRIVER} | MAKER
    while facts.operation is not None:
        operation = facts.operation
        action = next_action(facts, Memory(**memory), View(0.0, ALL))
        seen.append(type(action).__name__ if not isinstance(action, Commit) else str(action.transition))
        match action:
            case Fetch():
                memory["fetched"] = operation.ticket
            case Prove():
                memory["proof"] = prove(facts)
            case PutMark():
                memory["marked"] = (facts.meta.epoch, operation.step is Step.FLIPPED)
            case Commit(Transition.DISTRIBUTE):
                options: dict[str, Any] = {"driver": DRIVER, "proof": memory["proof"], "at": NOW}
                facts = do(facts, transitions.distribute(facts, operation.ticket, holders=ALL, **options))
            case Commit(Transition.FLIP):
                link = b"signed" if depth.renews_key else b""
                flip = transitions.flip(facts, operation.ticket, holders=ALL, link=link, revision=9, **options)
                facts = do(facts, flip)
            case Commit(Transition.SETTLE):
                options["proof"] = memory["proof"]
                facts = do(facts, transitions.settle(facts, operation.ticket, **options))
    assert seen == ["Fetch", "Prove", "distribute", "PutMark", "flip", "PutMark", "Fetch", "Prove", "settle"]
