"""What people set about rotation, as the control row `settings/rotation` keeps it; without a row nothing is set.

1. A hold pauses the keyring job and the schedule, until somebody ends it. An operation in progress goes on, and people
   may begin one.
2. A row that does not verify holds as well: it may have been a hold. To end it deletes the row.
"""

import msgspec

from common.errors import CorruptRowError
from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.records import Number

SETTINGS: records.Key = ("settings", "rotation")

_DAMAGED = "control row settings/rotation does not verify"


class Hold(msgspec.Struct, frozen=True):
    """Why nothing goes on by itself."""

    reason: str
    actor: str  # SPIFFE ID
    at: Number  # microseconds since 1970


class RotationSettings(msgspec.Struct, frozen=True):
    hold: Hold | None = None


def find_hold(facts: Facts) -> str:
    """Say why job and schedule are paused; empty: they are not."""
    if SETTINGS in facts.damaged:
        return _DAMAGED  # rule 2
    if (body := facts.bodies.get(SETTINGS)) is None:
        return ""
    try:
        hold = records.decode(RotationSettings, body).hold
    except CorruptRowError:
        return _DAMAGED
    return "" if hold is None else f"{hold.reason} ({hold.actor})"


def pause(facts: Facts, hold: Hold) -> Change:
    """Hold job and schedule; the newest reason counts."""
    body = records.encode(RotationSettings(hold))
    return Change(facts.current, {SETTINGS: body}, raises_epoch=False)


def resume(facts: Facts) -> Change:
    """End the hold; empty when there is none."""
    found = {SETTINGS} & (facts.bodies.keys() | facts.damaged)
    return Change(facts.current, delete=frozenset(found), raises_epoch=False)
