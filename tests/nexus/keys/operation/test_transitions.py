"""Every transition: what it changes, and what it refuses."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, Driver, Numbers, Step, Ticket, Waiver, WaiverKind
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import next_numbers
from nexus.keys.records import GenerationState, KekState, SetState
from tests.nexus.keys.operation.made import (
    DRIVER,
    NAMES,
    NOW,
    OPERATION_ID,
    OTHER,
    bring_to,
    damage,
    do,
    edit_row,
    hold,
    make_facts,
    make_order,
    make_preflight,
    make_set,
    make_staged,
    open_wrap,
    prepare,
    prove,
    read_operation,
    settle,
    token,
)

KEY_DEPTHS = [Depth.ROTATE, Depth.EMERGENCY]
ALL_STEPS = list(Step)


def reason_of(change: Change | Refused) -> Reason | None:
    return change.reason if isinstance(change, Refused) else None


def ticket_of(facts: Facts, **changes: Any) -> Ticket:
    return read_operation(facts).ticket._replace(**changes)


# What transitions change.


@pytest.mark.parametrize("depth", list(Depth))
def test_prepare_uses_numbers_up_and_changes_nothing_that_is_current(depth: Depth) -> None:
    before = make_facts()
    after = prepare(before, depth, reason="because", suspected_at=9)
    assert after.current == before.current
    assert (after.meta.last_generation, after.meta.last_kek_id) == ((2, 3) if depth.renews_key else (1, 2))
    assert after.meta.last_set_number == 2
    assert after.meta.epoch == before.meta.epoch + 1
    assert after.keyrings[1] == before.keyrings[1]
    operation = read_operation(after)
    assert operation.ticket == Ticket(OPERATION_ID, Step.PREPARED, after.meta.epoch)
    assert (operation.source, operation.target.set_number, operation.quorum) == (before.current, 2, 4)
    assert (operation.reason, operation.suspected_at, operation.driver) == ("because", 9, DRIVER)
    assert [one.set_number for one in after.pending_sets] == [2]
    assert bool(operation.link) is depth.renews_key


@pytest.mark.parametrize("depth", KEY_DEPTHS)
def test_prepare_stages_every_kek_under_the_new_root_key(depth: Depth) -> None:
    after = prepare(make_facts(), depth)
    keks = after.keyrings[2].keks
    assert {name: kek.state for name, kek in keks.items()} == {
        "2": KekState.TAINTED if depth is Depth.EMERGENCY else KekState.OLD,
        "3": KekState.CURRENT,
    }
    assert all(open_wrap(kek.wrap, token("root", 2)) == token("kek", int(name)) for name, kek in keks.items())
    assert (keks["2"].generation, keks["3"].generation, keks["3"].made_at) == (1, 2, NOW)
    generation = after.generations[2]
    assert (generation.state, generation.created_at) == (GenerationState.PENDING, NOW)
    assert generation.is_emergency is (depth is Depth.EMERGENCY)
    assert {(records.ESCROW, "2"), (records.CANARY, "3")} <= after.bodies.keys()


def test_a_tainted_kek_stays_tainted_and_verified_through_a_rotation() -> None:
    facts = make_facts()
    kek = records.KekRecord(b"w" * 32 + b"1" * 32, KekState.TAINTED, 1, verified_at=5, abandoned=2)
    facts = edit_row(facts, (records.KEYRING, "1"), records.KeyringRecord(facts.keyring.keks | {"1": kek}))
    kept = prepare(facts).keyrings[2].keks["1"]
    assert (kept.state, kept.verified_at, kept.abandoned, kept.generation) == (KekState.TAINTED, 5, 2, 1)


def test_distribute_records_who_holds_the_set() -> None:
    facts = bring_to(Step.PREPARED)
    change = transitions.distribute(
        facts, ticket_of(facts), driver=DRIVER, proof=prove(facts), holders=hold("k4", "k1", "k2", "k3"), at=NOW + 9
    )
    operation = read_operation(do(facts, change))
    assert (operation.step, operation.stepped_at, operation.started_at) == (Step.DISTRIBUTED, NOW + 9, NOW)
    assert [one.keeper for one in operation.acknowledgements] == ["k1", "k2", "k3", "k4"]


@pytest.mark.parametrize("depth", KEY_DEPTHS)
def test_a_flip_makes_everything_new_current_at_once(depth: Depth) -> None:
    before = bring_to(Step.DISTRIBUTED, depth)
    after = bring_to(Step.FLIPPED, depth)
    assert before.current == Numbers(1, 1, 2)
    assert after.current == Numbers(2, 2, 3)
    assert {number: one.state for number, one in after.sets.items()} == {1: SetState.DEAD, 2: SetState.CURRENT}
    was = GenerationState.COMPROMISED if depth is Depth.EMERGENCY else GenerationState.DECRYPT_ONLY
    assert {number: one.state for number, one in after.generations.items()} == {1: was, 2: GenerationState.ACTIVE}
    assert (after.generations[2].activated_at, after.generations[2].flip_revision) == (NOW + 1, 77)
    link = records.decode(records.LinkRecord, after.bodies[records.LINK, "1"])
    assert link.record == b"signed"
    assert after.older_keyrings == [1]


def test_a_flip_of_a_reshare_changes_the_set_alone() -> None:
    before, after = bring_to(Step.DISTRIBUTED, Depth.RESHARE), bring_to(Step.FLIPPED, Depth.RESHARE)
    changed = {
        key for key in before.bodies.keys() | after.bodies.keys() if before.bodies.get(key) != after.bodies.get(key)
    }
    assert changed == {records.OPERATION, (records.SHARD_SET, "1"), (records.SHARD_SET, "2")}
    assert after.current == Numbers(1, 2, 2)


def test_an_emergency_says_since_when_the_key_was_suspected() -> None:
    facts = prepare(make_facts(), Depth.EMERGENCY, suspected_at=123)
    flip = transitions.make_flip(facts, read_operation(facts), link=b"l", revision=1, at=NOW)
    old = do(facts, flip).generations[1]
    assert (old.suspected_at, old.found_at) == (123, NOW)


@pytest.mark.parametrize("depth", list(Depth))
def test_the_rehearsal_proves_what_is_committed(depth: Depth) -> None:
    """The flip of the rows at `prepared`, and of those at `distributed`, differ in the operation's own row alone."""
    results = []
    for step in (Step.PREPARED, Step.DISTRIBUTED):
        facts = bring_to(step, depth)
        link = b"signed" if depth.renews_key else b""
        flip = transitions.make_flip(facts, read_operation(facts), link=link, revision=77, at=NOW + 1)
        results.append({key: body for key, body in do(facts, flip).bodies.items() if key != records.OPERATION})
    flipped = {key: body for key, body in bring_to(Step.FLIPPED, depth).bodies.items() if key != records.OPERATION}
    assert results == [flipped, flipped]


@pytest.mark.parametrize("depth", KEY_DEPTHS)
def test_settle_deletes_what_only_the_old_key_opens(depth: Depth) -> None:
    before = bring_to(Step.FLIPPED, depth)
    after = settle(before)
    assert before.bodies.keys() - after.bodies.keys() == {
        records.OPERATION,
        (records.KEYRING, "1"),
        (records.ESCROW, "1"),
        (records.CANARY, "2"),
    }
    assert after.operation is None
    assert after.current == before.current


def test_settle_of_a_reshare_deletes_the_operation_alone() -> None:
    before = bring_to(Step.FLIPPED, Depth.RESHARE)
    assert before.bodies.keys() - settle(before).bodies.keys() == {records.OPERATION}


@pytest.mark.parametrize("depth", list(Depth))
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED])
def test_an_abort_leaves_what_was_and_numbers_used_up(step: Step, depth: Depth) -> None:
    facts = bring_to(step, depth)
    after = do(facts, transitions.abort(facts, ticket_of(facts)))
    was = make_facts()
    assert {key: after.bodies[key] for key in was.bodies} == was.bodies
    assert after.sets[2].state is SetState.DEAD
    left = {records.ENDED, (records.SHARD_SET, "2")} | ({(records.GENERATION, "2")} if depth.renews_key else set())
    assert after.bodies.keys() - was.bodies.keys() == left
    if depth.renews_key:
        assert after.generations[2].state is GenerationState.ABORTED
    assert after.meta.last_set_number == 2
    assert next_numbers(after, renews_key=True).set_number == 3
    assert after.meta.epoch == facts.meta.epoch + 1


@pytest.mark.parametrize("step", [Step.DISTRIBUTED, Step.FLIPPED])
def test_another_process_takes_over(step: Step) -> None:
    facts = bring_to(step)
    after = do(facts, transitions.take_over(facts, ticket_of(facts), driver=OTHER, at=NOW + 5))
    operation = read_operation(after)
    assert (operation.driver, operation.step, operation.fence) == (OTHER, step, facts.meta.epoch + 1)


# What transitions refuse.


def call(name: str, facts: Facts, ticket: Ticket, driver: Driver = DRIVER) -> Change | Refused:
    """Call a transition with evidence that is in order."""
    evidence: dict[str, Any] = {"driver": driver, "at": NOW}
    if name == "abort":
        return transitions.abort(facts, ticket)
    if name == "waive":
        return transitions.waive(facts, ticket, Waiver(WaiverKind.THRESHOLD, "r", "alice"), at=NOW)
    if name == "take_over":
        return transitions.take_over(facts, ticket, **evidence)
    evidence["proof"] = prove(facts) if facts.operation is not None else None
    if name in ("distribute", "flip"):
        evidence["holders"] = hold(*NAMES)
    if name == "flip":
        evidence |= {"link": b"l", "revision": 1}
    transition: Callable[..., Change | Refused] = getattr(transitions, name)
    return transition(facts, ticket, **evidence)


TRANSITIONS = [
    ("distribute", Step.PREPARED, DRIVER),
    ("flip", Step.DISTRIBUTED, DRIVER),
    ("settle", Step.FLIPPED, DRIVER),
    ("abort", Step.DISTRIBUTED, DRIVER),
    ("waive", Step.DISTRIBUTED, DRIVER),
    ("take_over", Step.DISTRIBUTED, OTHER),
]


@pytest.mark.parametrize(("name", "step", "driver"), TRANSITIONS, ids=[case[0] for case in TRANSITIONS])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({}, None, id="as expected"),
        pytest.param({"fence": 1}, Reason.OPERATION_MOVED, id="another fence"),
        pytest.param({"operation_id": b"x" * 16}, Reason.OPERATION_MOVED, id="another operation"),
    ],
)
def test_a_transition_is_a_compare_and_swap(
    name: str, step: Step, driver: Driver, changes: dict[str, Any], reason: Reason | None
) -> None:
    """On operation, step and fence; each one that is made raises the epoch, and so changes the fence (rule 1)."""
    facts = bring_to(step)
    change = call(name, facts, ticket_of(facts, **changes), driver)
    assert reason_of(change) == reason
    if not isinstance(change, Refused):
        after = facts.after(change)
        assert after.meta.epoch == facts.meta.epoch + 1
        again = call(name, after, ticket_of(facts), driver)
        assert reason_of(again) in (Reason.OPERATION_MOVED, Reason.NO_OPERATION)


@pytest.mark.parametrize(("name", "step", "driver"), TRANSITIONS, ids=[case[0] for case in TRANSITIONS])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        pytest.param(lambda facts: replace(facts, operation=None), Reason.NO_OPERATION, id="no operation"),
        pytest.param(lambda facts: replace(facts, meta=replace(facts.meta, sealed=True)), Reason.SEALED, id="sealed"),
        pytest.param(lambda facts: damage(facts, records.OPERATION), Reason.CONTROL_ROW_DAMAGED, id="damaged"),
    ],
)
def test_no_transition_without_an_operation_that_can_be_read(
    name: str, step: Step, driver: Driver, make: Callable[[Facts], Facts], reason: Reason
) -> None:
    facts = bring_to(step)
    assert reason_of(call(name, make(facts), ticket_of(facts), driver)) is reason


@pytest.mark.parametrize("name", ["distribute", "flip", "settle"])
@pytest.mark.parametrize("step", ALL_STEPS)
def test_a_transition_fits_one_step(name: str, step: Step) -> None:
    facts = bring_to(step)
    fits = (name, step) in [case[:2] for case in TRANSITIONS]
    assert reason_of(call(name, facts, ticket_of(facts))) is (None if fits else Reason.OPERATION_MOVED)


@pytest.mark.parametrize(("name", "step"), [case[:2] for case in TRANSITIONS[:3]], ids=["distribute", "flip", "settle"])
def test_only_the_driver_of_the_record_goes_on(name: str, step: Step) -> None:
    facts = bring_to(step)
    assert reason_of(call(name, facts, ticket_of(facts), OTHER)) is Reason.OPERATION_MOVED


@pytest.mark.parametrize(("name", "step"), [case[:2] for case in TRANSITIONS[:3]], ids=["distribute", "flip", "settle"])
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(None, id="there is none"),
        pytest.param({"operation_id": b"x" * 16}, id="of another operation"),
        pytest.param({"set_number": 1}, id="of another set"),
        pytest.param({"driver": OTHER}, id="of another process"),
        pytest.param({"step": "the other side of the flip"}, id="of the other side of the flip"),
    ],
)
def test_a_proof_that_does_not_fit_proves_nothing(name: str, step: Step, changes: dict[str, Any] | None) -> None:
    facts = bring_to(step)
    if changes is not None and "step" in changes:
        changes = {"step": Step.PREPARED if step is Step.FLIPPED else Step.FLIPPED}
    options: dict[str, Any] = {"driver": DRIVER, "at": NOW}
    if name != "settle":
        options["holders"] = hold(*NAMES)
    if name == "flip":
        options |= {"link": b"l", "revision": 1}
    proof = None if changes is None else prove(facts, **changes)
    change = getattr(transitions, name)(facts, ticket_of(facts), proof=proof, **options)
    assert reason_of(change) is Reason.NOT_PROVED


# Holders, seconds since they proved themselves, whether t are enough, and whether it is refused.
HOLDERS = [
    pytest.param(("k1", "k2", "k3", "k4", "k5"), 5.0, False, False, id="all"),
    pytest.param(("k1", "k2", "k3", "k4"), 0.0, False, False, id="a quorum"),
    pytest.param(("k1", "k2", "k3"), 0.0, False, True, id="a threshold"),
    pytest.param(("k1", "k2", "k3"), 0.0, True, False, id="a threshold, on the operator's word"),
    pytest.param(("k1", "k2"), 0.0, True, True, id="less than a threshold, whatever the operator says"),
    pytest.param(("k1", "k2", "k3", "x4"), 0.0, False, True, id="a stranger among them"),
]


@pytest.mark.parametrize(("names", "age", "is_waived", "is_refused"), HOLDERS)
@pytest.mark.parametrize("step", [Step.PREPARED, Step.DISTRIBUTED])
def test_a_quorum_holds_the_set_before_the_flip(
    step: Step, names: tuple[str, ...], age: float, is_waived: bool, is_refused: bool
) -> None:
    facts = bring_to(step)
    if is_waived:
        waiver = Waiver(WaiverKind.THRESHOLD, "two are lost", "alice")
        facts = do(facts, transitions.waive(facts, ticket_of(facts), waiver, at=NOW))
    options: dict[str, Any] = {"driver": DRIVER, "proof": prove(facts), "holders": hold(*names, age=age), "at": NOW}
    if step is Step.PREPARED:
        change = transitions.distribute(facts, ticket_of(facts), **options)
    else:
        change = transitions.flip(facts, ticket_of(facts), link=b"l", revision=1, **options)
    assert reason_of(change) is (Reason.HOLDERS_SHORT if is_refused else None)


def test_a_flip_wants_holders_of_just_now() -> None:
    """One that proved itself more than 5 s ago may have died since."""
    facts = bring_to(Step.DISTRIBUTED)
    holders = hold("k1", "k2", "k3") | hold("k4", "k5", age=5.1)
    options: dict[str, Any] = {"driver": DRIVER, "proof": prove(facts), "link": b"l", "revision": 1, "at": NOW}
    assert reason_of(transitions.flip(facts, ticket_of(facts), holders=holders, **options)) is Reason.HOLDERS_SHORT


@pytest.mark.parametrize(
    ("depth", "link"), [(Depth.ROTATE, b""), (Depth.EMERGENCY, b""), (Depth.RESHARE, b"signed")], ids=str
)
def test_a_new_root_key_has_a_link_and_nothing_else_has(depth: Depth, link: bytes) -> None:
    facts = bring_to(Step.DISTRIBUTED, depth)
    flip = transitions.make_flip(facts, read_operation(facts), link=link, revision=1, at=NOW)
    assert reason_of(flip) is Reason.STAGED_INVALID


def test_a_flip_does_not_overfill_the_chain() -> None:
    facts = bring_to(Step.DISTRIBUTED)
    facts = replace(
        facts, bodies={**facts.bodies, **{(records.LINK, str(seq)): b"l" for seq in range(1, MAX_LINKS + 1)}}
    )
    flip = transitions.make_flip(facts, read_operation(facts), link=b"l", revision=1, at=NOW)
    assert reason_of(flip) is Reason.CHAIN_FULL


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
def test_nothing_flips_to_rows_that_do_not_verify(key: records.Key) -> None:
    facts = damage(bring_to(Step.DISTRIBUTED), key)
    assert reason_of(call("flip", facts, ticket_of(facts))) is Reason.CONTROL_ROW_DAMAGED


def test_nothing_flips_when_something_else_is_current() -> None:
    facts = bring_to(Step.DISTRIBUTED)
    moved = msgspec.structs.replace(read_operation(facts), source=Numbers(1, 9, 2))
    facts = edit_row(facts, records.OPERATION, moved)
    assert reason_of(call("flip", facts, ticket_of(facts))) is Reason.CONTROL_ROW_DAMAGED


def test_settle_keeps_an_older_keyring_that_has_a_kek_of_its_own() -> None:
    """Deleting it would lose every row under this KEK."""
    facts = bring_to(Step.FLIPPED)
    extra = records.KekRecord(b"w" * 64, KekState.OLD, 1)
    facts = edit_row(facts, (records.KEYRING, "1"), records.KeyringRecord(facts.keyrings[1].keks | {"9": extra}))
    assert reason_of(call("settle", facts, ticket_of(facts))) is Reason.CONTROL_ROW_DAMAGED


def test_a_superuser_settles_without_proof() -> None:
    facts = bring_to(Step.FLIPPED)
    waiver = Waiver(WaiverKind.PROOF, "three keepers burnt", "alice")
    facts = do(facts, transitions.waive(facts, ticket_of(facts), waiver, at=NOW))
    assert reason_of(transitions.settle(facts, ticket_of(facts), driver=DRIVER, proof=None, at=NOW)) is None


def test_there_is_no_way_back_from_a_flip() -> None:
    facts = bring_to(Step.FLIPPED)
    assert reason_of(transitions.abort(facts, ticket_of(facts))) is Reason.OPERATION_FLIPPED


def test_nobody_takes_over_what_is_prepared() -> None:
    """Its key and points died with their maker (rule 2)."""
    facts = bring_to(Step.PREPARED)
    change = transitions.take_over(facts, ticket_of(facts), driver=OTHER, at=NOW)
    assert reason_of(change) is Reason.KEY_LOST


@pytest.mark.parametrize(
    ("kind", "step", "why", "reason"),
    [
        pytest.param(WaiverKind.THRESHOLD, Step.PREPARED, "r", None, id="threshold when prepared"),
        pytest.param(WaiverKind.THRESHOLD, Step.DISTRIBUTED, "r", None, id="threshold when distributed"),
        pytest.param(WaiverKind.THRESHOLD, Step.FLIPPED, "r", Reason.WAIVER_INVALID, id="threshold after the flip"),
        pytest.param(WaiverKind.PROOF, Step.FLIPPED, "r", None, id="proof after the flip"),
        pytest.param(WaiverKind.PROOF, Step.DISTRIBUTED, "r", Reason.WAIVER_INVALID, id="proof before the flip"),
        pytest.param(WaiverKind.BACKUP, Step.PREPARED, "r", Reason.WAIVER_INVALID, id="backup belongs to the order"),
        pytest.param(WaiverKind.PROOF, Step.FLIPPED, "", Reason.REASON_MISSING, id="for no reason"),
    ],
)
def test_an_operator_waives_what_is_still_to_come(
    kind: WaiverKind, step: Step, why: str, reason: Reason | None
) -> None:
    facts = bring_to(step)
    change = transitions.waive(facts, ticket_of(facts), Waiver(kind, why, "alice"), at=NOW)
    assert reason_of(change) is reason


def edit_staged(edit: Callable[[Staged], Staged]) -> Reason | None:
    """Prepare a rotation with something else than what fits, and return why it is refused."""
    facts = make_facts()
    staged = edit(make_staged(facts, next_numbers(facts, renews_key=True)))
    preflight = make_preflight(backup=Backup(1, NOW))
    return reason_of(
        transitions.prepare(facts, make_order(), staged, preflight, operation_id=OPERATION_ID, driver=DRIVER, at=NOW)
    )


def edit_set(**changes: Any) -> Callable[[Staged], Staged]:
    return lambda staged: replace(staged, shard_set=msgspec.structs.replace(staged.shard_set, **changes))


def edit_key(**changes: Any) -> Callable[[Staged], Staged]:
    def edit(staged: Staged) -> Staged:
        assert staged.key is not None
        return replace(staged, key=replace(staged.key, **changes))

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(edit_set(state=SetState.CURRENT), id="the set is current already"),
        pytest.param(edit_set(timeline=2), id="another timeline"),
        pytest.param(edit_set(set_number=1), id="a set number of before"),
        pytest.param(edit_set(generation=1), id="a generation of before"),
        pytest.param(edit_set(threshold=2), id="another threshold than ordered"),
        pytest.param(edit_set(members=make_set(Numbers(2, 2, 3), names=NAMES[:4]).members), id="other members"),
        pytest.param(lambda staged: replace(staged, kek_id=2), id="a KEK number of before"),
        pytest.param(lambda staged: replace(staged, key=None), id="no new key"),
        pytest.param(edit_key(kcv=token("root", 1)), id="the current root key once more"),
        pytest.param(edit_key(kcv=b"short"), id="a kcv of the wrong size"),
        pytest.param(edit_key(wraps={3: b"w"}), id="a KEK is left out"),
        pytest.param(edit_key(wraps={2: b"w", 3: b"w", 4: b"w"}), id="a KEK too many"),
        pytest.param(edit_key(escrow=records.EscrowRecord(())), id="no escrow for custodians"),
        pytest.param(edit_key(canary=records.CanaryRecord(2, b"", b"", b"")), id="a canary under the old KEK"),
        pytest.param(edit_key(link=b""), id="no link"),
    ],
)
def test_what_was_made_has_to_fit(edit: Callable[[Staged], Staged]) -> None:
    assert edit_staged(lambda staged: staged) is None
    assert edit_staged(edit) is Reason.STAGED_INVALID
