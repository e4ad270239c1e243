"""What has to be true before an operation begins, case by case."""

from dataclasses import replace
from typing import Any

import pytest

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.evidence import Backup
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.preflight import SPARE_LINKS, check_all, find_refusals
from nexus.keys.operation.record import Depth, Step, Waiver, WaiverKind
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import next_numbers
from tests.nexus.keys.operation.made import (
    DAY,
    DRIVER,
    NAMES,
    NOW,
    OPERATION_ID,
    bring_to,
    damage,
    make_facts,
    make_order,
    make_preflight,
    make_staged,
    settle,
)

FRESH = Backup(1, NOW - 7 * DAY)
WAIVED = (Waiver(WaiverKind.BACKUP, "new cluster", "alice"),)
R, K, E = Depth.RESHARE, Depth.ROTATE, Depth.EMERGENCY


def with_links(count: int) -> Facts:
    facts = make_facts()
    links = {(records.LINK, str(seq)): b"link" for seq in range(1, count + 1)}
    return read_facts(facts.meta, {**facts.bodies, **links})


def aged(days: int) -> Facts:
    facts = make_facts()
    record = records.GenerationRecord(records.GenerationState.ACTIVE, b"k" * 32, activated_at=NOW - days * DAY)
    return read_facts(facts.meta, {**facts.bodies, (records.GENERATION, "1"): records.encode(record)})


# Facts, depth, what the order has, what was measured, and why it is refused; None: it is not.
CASES = [
    pytest.param(None, K, {}, {}, None, id="a rotation in order"),
    pytest.param(None, R, {}, {"backup": None}, None, id="a reshare needs no backup"),
    pytest.param(None, E, {}, {"backup": None}, None, id="an emergency needs no backup"),
    pytest.param(None, K, {}, {"reachable": {"k1", "k2", "k3", "k4"}}, None, id="a quorum is reachable"),
    pytest.param(None, K, {}, {"reachable": {"k1", "k2", "k3"}}, Reason.KEEPERS_SHORT, id="less than a quorum"),
    pytest.param(
        None, R, {}, {"reachable": {"k1", "k2", "k3", "k9"}}, Reason.KEEPERS_SHORT, id="a stranger counts not"
    ),
    pytest.param(None, K, {}, {"too_old": {"k3"}}, Reason.KEEPER_TOO_OLD, id="a member is too old"),
    pytest.param(None, K, {}, {"too_old": {"k9"}}, None, id="a keeper that is no member is too old"),
    pytest.param(None, K, {}, {"is_escrow_proved": False}, Reason.ESCROW_UNPROVED, id="the shares were never proved"),
    pytest.param(None, E, {}, {"is_escrow_proved": False}, Reason.ESCROW_UNPROVED, id="nor for an emergency"),
    pytest.param(None, R, {}, {"is_escrow_proved": False}, None, id="a reshare leaves the escrow alone"),
    pytest.param(None, K, {}, {"backup": None}, Reason.BACKUP_OLD, id="no backup"),
    pytest.param(None, K, {}, {"backup": Backup(0, NOW)}, Reason.BACKUP_OLD, id="a backup of another generation"),
    pytest.param(None, K, {}, {"backup": Backup(1, NOW - 7 * DAY - 1)}, Reason.BACKUP_OLD, id="a backup too old"),
    pytest.param(None, K, {"waivers": WAIVED}, {"backup": None}, None, id="the backup is waived"),
    pytest.param(
        None,
        K,
        {"waivers": (Waiver(WaiverKind.BACKUP, "", "a"),)},
        {},
        Reason.REASON_MISSING,
        id="waived for no reason",
    ),
    pytest.param(None, K, {}, {"disk_free": 0}, Reason.DISK_SHORT, id="the disk is short"),
    pytest.param(None, R, {}, {"memory_free": 0}, Reason.MEMORY_SHORT, id="protected memory is short"),
    pytest.param(None, K, {"reason": ""}, {}, None, id="a rotation needs no reason"),
    pytest.param(None, E, {"reason": ""}, {}, Reason.REASON_MISSING, id="an emergency needs a reason"),
    pytest.param("29 days", K, {}, {}, Reason.MINIMUM_AGE, id="younger than the minimum age"),
    pytest.param("30 days", K, {}, {}, None, id="just as old"),
    pytest.param("-9 days", K, {}, {}, Reason.MINIMUM_AGE, id="the clock was set back"),
    pytest.param("29 days", K, {"is_forced": True}, {}, None, id="forced inside the minimum age"),
    pytest.param("29 days", K, {"is_forced": True, "reason": ""}, {}, Reason.REASON_MISSING, id="forced for no reason"),
    pytest.param("29 days", R, {}, {}, None, id="a reshare has no minimum age"),
    pytest.param("29 days", E, {}, {}, None, id="nor has an emergency"),
    pytest.param(
        None, K, {"is_scheduled": True}, {"is_in_window": False}, Reason.OUTSIDE_WINDOW, id="outside a window"
    ),
    pytest.param(None, K, {}, {"is_in_window": False}, None, id="by hand at any hour"),
    pytest.param(None, R, {"threshold": 1}, {}, Reason.MEMBERS_INVALID, id="threshold 1"),
    pytest.param(None, R, {"threshold": 6}, {}, Reason.MEMBERS_INVALID, id="threshold above the members"),
    pytest.param(None, R, {"keepers": ("k1", *NAMES)}, {}, Reason.MEMBERS_INVALID, id="a keeper named twice"),
    pytest.param(f"{MAX_LINKS - SPARE_LINKS} links", K, {}, {}, Reason.CHAIN_FULL, id="near the end of the chain"),
    pytest.param(f"{MAX_LINKS - SPARE_LINKS - 1} links", K, {}, {}, None, id="the last rotation of a chain"),
    pytest.param(f"{MAX_LINKS - SPARE_LINKS} links", E, {}, {}, None, id="an emergency near the end of the chain"),
    pytest.param(f"{MAX_LINKS} links", E, {}, {}, Reason.CHAIN_FULL, id="the chain is full"),
    pytest.param(f"{MAX_LINKS} links", R, {}, {}, None, id="a reshare adds no link"),
    pytest.param("sealed", K, {}, {}, Reason.SEALED, id="sealed"),
    pytest.param("prepared", K, {}, {}, Reason.OPERATION_RUNNING, id="one is prepared"),
    pytest.param("flipped", R, {}, {}, Reason.OPERATION_RUNNING, id="one is flipped"),
    pytest.param("its row is lost", R, {}, {}, Reason.OPERATION_RUNNING, id="rows of one are left"),
    pytest.param("settled", R, {}, {}, None, id="one is settled"),
    pytest.param("its row is damaged", K, {}, {}, Reason.CONTROL_ROW_DAMAGED, id="one that cannot be read"),
    pytest.param("escrow is damaged", R, {}, {}, Reason.CONTROL_ROW_DAMAGED, id="a row that it needs is damaged"),
    pytest.param("policy is damaged", R, {}, {}, None, id="a policy is damaged"),
]


def make_case(what: str | None) -> Facts:
    """Return the facts of a case, which is named in words."""
    match what:
        case None:
            return make_facts()
        case "sealed":
            return make_facts(sealed=True)
        case "prepared" | "flipped":
            return bring_to(Step(what))
        case "settled":
            return settle(bring_to(Step.FLIPPED))
        case "its row is lost":
            facts = bring_to(Step.FLIPPED)
            return read_facts(facts.meta, {key: body for key, body in facts.bodies.items() if key != records.OPERATION})
        case "its row is damaged":
            return damage(bring_to(Step.PREPARED), records.OPERATION)
        case "escrow is damaged":
            return damage(make_facts(), (records.ESCROW, "1"))
        case "policy is damaged":
            return damage(make_facts(), (records.POLICY, "p"))
    number, unit = what.split()
    return aged(int(number)) if unit == "days" else with_links(int(number))


@pytest.mark.parametrize(("what", "depth", "order", "measured", "reason"), CASES)
def test_an_operation_begins_or_says_why_not(
    what: str | None, depth: Depth, order: dict[str, Any], measured: dict[str, Any], reason: Reason | None
) -> None:
    """The dry run says the same as the attempt."""
    facts = make_case(what)
    made = make_order(depth, **order)
    preflight = make_preflight(**({"backup": replace(FRESH, generation=facts.generation)} | measured))
    refused = next(find_refusals(check_all(facts, made, preflight)), None)
    assert (refused and refused.reason) == reason
    numbers = next_numbers(facts, renews_key=depth.renews_key)
    staged = make_staged(facts, numbers, renews_key=depth.renews_key, names=made.keepers, threshold=made.threshold)
    change = transitions.prepare(facts, made, staged, preflight, operation_id=OPERATION_ID, driver=DRIVER, at=NOW)
    assert (change.reason if isinstance(change, Refused) else None) == reason


def test_every_reason_of_a_preflight_has_its_case() -> None:
    """So that a new one cannot be forgotten above."""
    tested = {param.values[4] for param in CASES} - {None}
    before = list(Reason)[: list(Reason).index(Reason.STAGED_INVALID)]
    assert tested == set(before)


def test_a_dry_run_names_every_check() -> None:
    """Those that pass as well, with what was found."""
    checks = check_all(make_facts(), make_order(), make_preflight(reachable=frozenset({"k1"})))
    lines = {check.name: check.found for check in checks}
    assert lines["keepers"] == "1 of 5 reachable, want 4"
    assert lines["backup"] == "none of generation 1 is verified: make one"
    assert lines["operation"] == "none in progress"
    assert [check.name for check in checks if check.reason] == ["keepers", "backup"]
