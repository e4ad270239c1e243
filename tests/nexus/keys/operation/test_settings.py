"""A hold on rotation: set with a reason, found by job and schedule, and ended."""

from nexus.keys import records
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.settings import SETTINGS, Hold, find_hold, pause, resume
from tests.nexus.keys.operation.made import NOW, damage, do, make_facts, prepare

HOLD = Hold("audit week", "spiffe://test/bob", NOW)


def put(body: bytes) -> Facts:
    facts = make_facts()
    return read_facts(facts.meta, {**facts.bodies, SETTINGS: body})


def test_nothing_is_paused_at_first() -> None:
    """Without a row, and with one that says nothing of a hold."""
    assert find_hold(make_facts()) == ""
    assert find_hold(put(b"{}")) == ""


def test_a_hold_says_why_and_by_whom() -> None:
    """The newest reason counts."""
    facts = do(make_facts(), pause(make_facts(), HOLD))
    assert find_hold(facts) == "audit week (spiffe://test/bob)"
    facts = do(facts, pause(facts, Hold("freeze", "spiffe://test/eve", NOW)))
    assert find_hold(facts) == "freeze (spiffe://test/eve)"


def test_a_hold_ends() -> None:
    """Its row is gone; again: nothing changes."""
    facts = do(make_facts(), pause(make_facts(), HOLD))
    facts = do(facts, resume(facts))
    assert find_hold(facts) == ""
    assert SETTINGS not in facts.bodies
    assert resume(facts).is_empty


def test_a_row_that_cannot_be_read_holds_until_it_is_ended() -> None:
    """It may have been a hold: nothing goes on by itself."""
    paused = do(make_facts(), pause(make_facts(), HOLD))
    for facts in (damage(paused, SETTINGS), put(b"[]"), put(b'{"hold": 1}')):
        assert find_hold(facts) == "control row settings/rotation does not verify"
        assert find_hold(do(facts, resume(facts))) == ""


def test_an_operation_in_progress_is_not_disturbed() -> None:
    """No epoch is raised, so its marks and its next step stay as they are."""
    facts = prepare(make_facts())
    paused = do(facts, pause(facts, HOLD))
    assert (paused.meta.epoch, paused.operation) == (facts.meta.epoch, facts.operation)
    assert do(paused, resume(paused)).bodies.keys() == facts.bodies.keys()
    assert records.OPERATION in paused.bodies
