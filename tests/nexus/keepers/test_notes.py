"""How much the audit hears of one keeper."""

from nexus.keepers.notes import BURST, EVERY_S, LimitedNotes
from tests.kit.manual_clock import ManualClock

ACTION, KEEPER = "keeper.fault", "keeper-1"


def test_a_keeper_that_goes_on_for_ever_is_heard_once_a_minute_with_the_count_of_the_rest() -> None:
    """The first notes go through as they are, and nothing is left out without being counted."""
    heard: list[tuple[str, str, str]] = []
    clock = ManualClock()
    note = LimitedNotes(lambda *one: heard.append(one), clock)
    for _ in range(BURST + 7):
        note(ACTION, KEEPER, "lies")
    assert heard == BURST * [(ACTION, KEEPER, "lies")]
    clock.advance(EVERY_S)
    for _ in range(3):
        note(ACTION, KEEPER, "lies")
    assert heard[BURST:] == [(ACTION, KEEPER, "lies (7 notes before this one left out)")]
    clock.advance(EVERY_S * BURST * 10)
    for _ in range(BURST + 1):
        note(ACTION, KEEPER, "")
    assert len(heard) == 2 * BURST + 1
    assert heard[BURST + 1 :][:2] == [(ACTION, KEEPER, " (2 notes before this one left out)"), (ACTION, KEEPER, "")]
