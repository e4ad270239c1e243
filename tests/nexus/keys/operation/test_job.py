"""The keyring job: what it does next, and when a KEK and a generation go."""

from typing import Any

import pytest

from nexus.keys import records
from nexus.keys.operation import job
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.job import Counts, KekRows, Retire, Rewrap, Verify, Waiting, WaitsFor
from nexus.keys.operation.record import Depth, Step
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.records import GenerationState, KekState
from tests.nexus.keys.operation.made import (
    NOW,
    bring_to,
    damage,
    distribute,
    do,
    edit_row,
    flip,
    make_facts,
    prepare,
    settle,
)

BACKUP = Backup(2, NOW)


def rotated(depth: Depth = Depth.ROTATE) -> Facts:
    return settle(bring_to(Step.FLIPPED, depth))


def edit_kek(facts: Facts, kek_id: int = 2, **changes: Any) -> Facts:
    keks = dict(facts.keyring.keks)
    kek = keks[str(kek_id)]
    values = {field: getattr(kek, field) for field in kek.__struct_fields__}
    keks[str(kek_id)] = records.KekRecord(**(values | changes))
    return edit_row(facts, (records.KEYRING, str(facts.generation)), records.KeyringRecord(keks))


def verified(**changes: Any) -> Facts:
    return edit_kek(rotated(), verified_at=5, **changes)


def without_backup() -> Facts:
    facts = verified()
    generation = facts.generations[2]
    values = {field: getattr(generation, field) for field in generation.__struct_fields__}
    changed = records.GenerationRecord(**(values | {"without_backup": "new cluster"}))
    return edit_row(facts, (records.GENERATION, "2"), changed)


def rows(**counts: int) -> Counts:
    return Counts({2: KekRows(**counts)})


# Facts, rows under KEK 2, backup, and the step.
CASES = [
    pytest.param(make_facts(), rows(open=9), None, None, id="rows under the current KEK are no work"),
    pytest.param(rotated(), rows(open=1), None, Rewrap(2, renews_deks=False), id="rows under an old one"),
    pytest.param(rotated(Depth.EMERGENCY), rows(open=1), None, Rewrap(2, renews_deks=True), id="under a tainted one"),
    pytest.param(rotated(), rows(), None, Verify(2), id="none left"),
    pytest.param(rotated(), rows(quarantined=3), None, Verify(2), id="none left outside the quarantine"),
    pytest.param(verified(), rows(quarantined=1), BACKUP, Waiting(2, WaitsFor.QUARANTINE), id="waits for somebody"),
    pytest.param(verified(abandoned=2), rows(abandoned=2), BACKUP, Retire(2), id="given up by name"),
    pytest.param(
        verified(abandoned=1), rows(abandoned=2), BACKUP, Waiting(2, WaitsFor.QUARANTINE), id="more than were counted"
    ),
    pytest.param(verified(abandoned=1), rows(), BACKUP, Waiting(2, WaitsFor.QUARANTINE), id="fewer than were counted"),
    pytest.param(verified(), rows(), None, Waiting(2, WaitsFor.BACKUP), id="no backup"),
    pytest.param(
        verified(), rows(), Backup(1, NOW), Waiting(2, WaitsFor.BACKUP), id="a backup of the generation before"
    ),
    pytest.param(without_backup(), rows(), None, Retire(2), id="the backup was waived"),
    pytest.param(verified(), rows(), BACKUP, Retire(2), id="a backup of this generation"),
    pytest.param(
        verified(), rows(open=1), BACKUP, Rewrap(2, renews_deks=False), id="a row that came out of quarantine"
    ),
    pytest.param(prepare(rotated()), rows(open=1), None, Rewrap(2, renews_deks=False), id="rows beside an operation"),
    pytest.param(prepare(rotated()), rows(), None, Waiting(2, WaitsFor.OPERATION), id="the keyring is frozen"),
    pytest.param(bring_to(Step.FLIPPED), rows(), None, Waiting(2, WaitsFor.OPERATION), id="and until it is settled"),
]


@pytest.mark.parametrize(("facts", "counts", "backup", "step"), CASES)
def test_the_next_step(facts: Facts, counts: Counts, backup: Backup | None, step: job.JobStep | None) -> None:
    assert job.next_job_step(facts, counts, backup) == step


def test_the_lowest_kek_comes_first_and_one_that_waits_holds_up_no_other() -> None:
    facts = edit_kek(edit_kek(settle_another(rotated()), verified_at=5), 3, verified_at=5)
    assert sorted(facts.keyring.keks) == ["2", "3", "4"]
    counts = Counts({2: KekRows(quarantined=1), 3: KekRows()})
    assert job.next_job_step(facts, counts, Backup(3, NOW)) == Retire(3)
    both = Counts({2: KekRows(open=1), 3: KekRows(open=1)})
    assert job.next_job_step(facts, both, None) == Rewrap(2, renews_deks=False)


def settle_another(facts: Facts, depth: Depth = Depth.ROTATE) -> Facts:
    """Rotate once more after a rotation whose rows are not all wrapped anew."""
    return settle(flip(distribute(prepare(facts, depth))))


def test_an_emergency_after_a_half_done_rotation_taints_both() -> None:
    facts = settle_another(rotated(), Depth.EMERGENCY)
    states = {name: kek.state for name, kek in facts.keyring.keks.items()}
    assert states == {"2": KekState.TAINTED, "3": KekState.TAINTED, "4": KekState.CURRENT}


def reason_of(change: Change | Refused) -> Reason | None:
    return change.reason if isinstance(change, Refused) else None


@pytest.mark.parametrize(
    ("facts", "kek_id", "counted", "backup", "reason"),
    [
        pytest.param(verified(), 2, KekRows(), BACKUP, None, id="in order"),
        pytest.param(verified(), 3, KekRows(), BACKUP, Reason.KEK_CURRENT, id="the current one"),
        pytest.param(verified(), 9, KekRows(), BACKUP, Reason.KEK_UNKNOWN, id="one that is not there"),
        pytest.param(rotated(), 2, KekRows(), BACKUP, Reason.KEK_UNVERIFIED, id="not verified"),
        pytest.param(verified(), 2, KekRows(open=1), BACKUP, Reason.ROWS_LEFT, id="a row is under it"),
        pytest.param(verified(), 2, KekRows(quarantined=1), BACKUP, Reason.QUARANTINE, id="a row is in quarantine"),
        pytest.param(verified(), 2, KekRows(abandoned=1), BACKUP, Reason.QUARANTINE, id="given up, and not counted"),
        pytest.param(verified(abandoned=1), 2, KekRows(abandoned=1), BACKUP, None, id="given up, and counted"),
        pytest.param(verified(abandoned=1), 2, KekRows(), BACKUP, Reason.QUARANTINE, id="counted, and gone"),
        pytest.param(verified(), 2, KekRows(), None, Reason.BACKUP_OLD, id="no backup"),
        pytest.param(without_backup(), 2, KekRows(), None, None, id="the backup was waived"),
        pytest.param(
            edit_kek(bring_to(Step.FLIPPED), verified_at=5), 2, KekRows(), BACKUP, Reason.OPERATION_RUNNING, id="frozen"
        ),
        pytest.param(
            damage(verified(), records.OPERATION), 2, KekRows(), BACKUP, Reason.OPERATION_RUNNING, id="perhaps frozen"
        ),
    ],
)
def test_a_kek_goes_or_it_is_said_why_not(
    facts: Facts, kek_id: int, counted: KekRows, backup: Backup | None, reason: Reason | None
) -> None:
    change = job.retire(facts, kek_id, counted, backup, at=NOW)
    assert reason_of(change) is reason
    if not isinstance(change, Refused):
        assert list(facts.after(change).keyring.keks) == ["3"]


@pytest.mark.parametrize(
    ("depth", "state"),
    [(Depth.ROTATE, GenerationState.RETIRED), (Depth.EMERGENCY, GenerationState.COMPROMISED)],
    ids=["rotate", "emergency"],
)
def test_a_generation_ends_with_its_last_kek(depth: Depth, state: GenerationState) -> None:
    facts = edit_kek(rotated(depth), verified_at=5)
    after = do(facts, job.retire(facts, 2, KekRows(), BACKUP, at=NOW + 9))
    assert (after.generations[1].state, after.generations[1].retired_at) == (state, NOW + 9)
    assert after.generations[2] == facts.generations[2]


def test_a_generation_outlives_the_keks_of_others() -> None:
    facts = edit_kek(settle_another(rotated()), 3, verified_at=5)
    after = do(facts, job.retire(facts, 3, KekRows(), Backup(3, NOW), at=NOW))
    assert after.generations[1].state is GenerationState.DECRYPT_ONLY
    assert after.generations[2].state is GenerationState.RETIRED


@pytest.mark.parametrize(
    ("kek_id", "counted", "reason"),
    [
        pytest.param(2, KekRows(quarantined=4), None, id="none outside the quarantine"),
        pytest.param(2, KekRows(open=1), Reason.ROWS_LEFT, id="one is left"),
        pytest.param(3, KekRows(), Reason.KEK_CURRENT, id="the current one"),
    ],
)
def test_a_kek_is_verified_when_no_row_was_found(kek_id: int, counted: KekRows, reason: Reason | None) -> None:
    facts = rotated()
    change = job.mark_verified(facts, kek_id, counted, at=NOW)
    assert reason_of(change) is reason
    if not isinstance(change, Refused):
        assert facts.after(change).keyring.keks["2"].verified_at == NOW


@pytest.mark.parametrize(
    ("added", "count"), [pytest.param(2, 5, id="two more"), pytest.param(-3, 0, id="all are tried again")]
)
def test_the_keyring_counts_what_was_given_up(added: int, count: int) -> None:
    facts = verified(abandoned=3)
    assert do(facts, job.count_abandoned(facts, 2, added)).keyring.keks["2"].abandoned == count


@pytest.mark.parametrize(
    ("facts", "kek_id", "added", "reason"),
    [
        pytest.param(verified(abandoned=3), 2, -4, Reason.QUARANTINE, id="more than were given up"),
        pytest.param(verified(), 3, 1, Reason.KEK_CURRENT, id="under the current KEK"),
        pytest.param(prepare(verified()), 2, 1, Reason.OPERATION_RUNNING, id="the keyring is frozen"),
    ],
)
def test_what_is_given_up_is_counted_under_an_older_kek(facts: Facts, kek_id: int, added: int, reason: Reason) -> None:
    assert reason_of(job.count_abandoned(facts, kek_id, added)) is reason


def test_read_facts_is_what_a_restart_sees() -> None:
    """Nothing of the job is kept but in the keyring (rule 1)."""
    facts = verified()
    again = read_facts(facts.meta, facts.bodies)
    assert job.next_job_step(again, rows(), BACKUP) == Retire(2)
