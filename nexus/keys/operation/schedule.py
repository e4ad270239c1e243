"""What is due, when the next operation begins by itself, and what somebody has to be told. Nothing begins here.

1. A root key is due when it is as old as its interval, or a day after custodians brought it back. A shard set is due
   when it is as old as its own interval. Without an interval only people begin operations.
2. The schedule begins nothing inside the minimum age, nor with a root key of unknown age, which may be younger.
3. It begins nothing while it is off, on hold, outside its windows, or while an operation is in progress.
4. The wall time may jump. Of what a process itself saw begin it knows the age by its monotonic clock too, and wants
   the whole minimum age and half an interval by that (half, since it stands still while a machine sleeps), and a day
   since the last new set. So however the clock jumps, it starts one operation at most.
5. Notices are given 30, 7 and 1 days ahead, and when something is due, whether or not the schedule is on.

All times are microseconds since 1970, all durations microseconds.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from nexus.keys import records
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth
from nexus.keys.operation.settings import find_hold
from nexus.keys.operation.windows import DAY, Window, find_opening, is_open
from nexus.keys.records import Key

AHEAD = (30, 7, 1)  # days before something is due, at which it is said
REST = DAY  # since custodians had the root key, and since the last set that this process saw

# Every wrap takes a random salt of 128 bits, and an AEAD key that is derived with it and used once (`nexus.keys.wrap`),
# so no nonces run out. Two equal salts would use an AEAD key twice: among 2**48 their probability is 2**-33.
MAX_WRAPS = 2**48


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration says of rotation. 0 as an interval: by hand only."""

    is_enabled: bool = True
    interval: int = 365 * DAY
    minimum_age: int = 30 * DAY
    windows: tuple[Window, ...] = ()  # empty: at any time
    reshare_interval: int = 0
    backup_max_age: int = 7 * DAY
    rows_per_second: int = 0  # that the keyring job brings at most; 0: as calls in flight allow


@dataclass(frozen=True, slots=True)
class Seen:
    """How long ago this process saw a new root key and set, by the monotonic clock; None: they are older than it."""

    key: int | None = None
    shard_set: int | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """An operation that the schedule begins now."""

    depth: Depth
    why: str


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The operation that the schedule begins next, and when."""

    depth: Depth
    at: int


class Subject(enum.StrEnum):
    """What a notice is about."""

    KEY_AGE = "key-age"
    KEY_AGE_UNKNOWN = "key-age-unknown"
    KEY_FROM_FUTURE = "key-from-future"  # the clock was ahead when it was activated, or is behind now
    KEK_AGE = "kek-age"
    KEK_WRAPS = "kek-wraps"
    PEOPLE = "people"  # custodians brought the root key back


@dataclass(frozen=True, slots=True)
class Notice:
    """A rotation that is due, or soon."""

    subject: Subject
    number: int  # of the generation or KEK
    days: int  # ahead, one of AHEAD; 0: it is due
    text: str

    @property
    def is_due(self) -> bool:
        """Whether it is due now."""
        return self.days == 0


def find_due(facts: Facts, terms: Terms, now: int, seen: Seen = Seen()) -> tuple[Due, ...]:
    """Return what the schedule begins at *now*, the more urgent first: if that is refused, the next one is tried."""
    if not terms.is_enabled or find_hold(facts) or not _is_idle(facts) or not is_open(terms.windows, now):
        return ()  # rule 3
    if seen.shard_set is not None and seen.shard_set < REST:
        return ()  # rule 4
    due = find_overdue(facts, terms, now)
    return tuple(Due(depth, _explain(facts, depth, now)) for depth in due if _is_witnessed(facts, depth, terms, seen))


def find_overdue(facts: Facts, terms: Terms, now: int) -> tuple[Depth, ...]:
    """Return the depths whose moment has come, whether or not the schedule may begin anything (rules 1 and 2)."""
    return tuple(depth for depth, moment in _find_moments(facts, terms) if moment <= now)


def find_next(facts: Facts, terms: Terms, now: int) -> Scheduled | None:
    """Return what the schedule begins next; None: nothing, or it is off or on hold."""
    if not terms.is_enabled or find_hold(facts):
        return None
    found = [
        Scheduled(depth, find_opening(terms.windows, max(moment, now))) for depth, moment in _find_moments(facts, terms)
    ]
    return min(found, key=lambda one: one.at, default=None)  # of two at the same moment the first


def find_notices(facts: Facts, terms: Terms, now: int) -> list[Notice]:
    """Return what somebody has to be told (rule 5), and no more than one notice of a subject."""
    return [*_judge_key(facts, terms, now), *_judge_kek(facts, terms, now), *_judge_people(facts)]


def find_activation(facts: Facts) -> int:
    """Return when the current root key became current; 0: it is not known."""
    record = facts.generations.get(facts.generation)
    return 0 if record is None else record.activated_at or record.created_at


def note_people(facts: Facts, *, at: int) -> dict[Key, bytes]:
    """Return the row that remembers that custodians brought the current root key back, for the change of the unseal.

    Empty when the row of its generation does not verify: nothing can be remembered there.
    """
    record = facts.generations.get(facts.generation)
    if record is None:
        return {}
    noted = msgspec.structs.replace(record, people_had_it_at=at)
    return {(records.GENERATION, str(facts.generation)): records.encode(noted)}


def _find_moments(facts: Facts, terms: Terms) -> Iterator[tuple[Depth, int]]:
    activated_at, people_at = find_activation(facts), _find_people(facts)
    if terms.interval and activated_at:
        moment = activated_at + terms.interval
        if people_at:
            moment = min(moment, people_at + REST)
        yield Depth.ROTATE, max(moment, activated_at + terms.minimum_age)
    if terms.reshare_interval:
        yield Depth.RESHARE, _find_drawing(facts) + terms.reshare_interval


def _find_drawing(facts: Facts) -> int:
    """Return when the current set was drawn, else when its root key began: it may be younger; 0: neither is known."""
    return facts.current_set.drawn_at or find_activation(facts)


def _is_idle(facts: Facts) -> bool:
    is_whole = facts.operation is None and not facts.pending_sets and not facts.older_keyrings
    return is_whole and not facts.meta.sealed


def _is_witnessed(facts: Facts, depth: Depth, terms: Terms, seen: Seen) -> bool:
    """Rule 4. That custodians had a key is no matter of its age."""
    if depth is Depth.ROTATE:
        interval = 0 if _find_people(facts) else terms.interval
        return seen.key is None or seen.key >= max(terms.minimum_age, interval // 2)
    return seen.shard_set is None or seen.shard_set >= terms.reshare_interval // 2


def _explain(facts: Facts, depth: Depth, now: int) -> str:
    if depth is Depth.RESHARE:
        drawn_at = _find_drawing(facts)
        return f"scheduled: the shard set is {_days(now - drawn_at)} old" if drawn_at else "scheduled"
    why = f"scheduled: the root key is {_days(now - find_activation(facts))} old"
    return f"{why}, and custodians had it" if _find_people(facts) else why


def _judge_key(facts: Facts, terms: Terms, now: int) -> Iterator[Notice]:
    number, activated_at = facts.generation, find_activation(facts)
    if not terms.interval:
        return
    if not activated_at:
        text = f"the age of root key {number} is not known: rotate it by hand once, then the schedule goes on"
        yield Notice(Subject.KEY_AGE_UNKNOWN, number, 0, text)
    elif activated_at - now >= DAY:
        text = f"root key {number} is of a time {_days(activated_at - now)} ahead: set the clock, or rotate by hand"
        yield Notice(Subject.KEY_FROM_FUTURE, number, 0, text)
    elif (days := _find_days(now - activated_at, terms.interval)) is not None:
        yield Notice(Subject.KEY_AGE, number, days, _tell_age("root key", number, now - activated_at, terms))


def _judge_kek(facts: Facts, terms: Terms, now: int) -> Iterator[Notice]:
    number = facts.kek_id
    made_at = facts.keyring.keks[str(number)].made_at
    # A KEK is made with its root key, whose notice is enough; where it is older, it has one of its own.
    if terms.interval and 0 < made_at < find_activation(facts) - DAY:
        days = _find_days(now - made_at, terms.interval)
        if days is not None:
            yield Notice(Subject.KEK_AGE, number, days, _tell_age("KEK", number, now - made_at, terms))
    if facts.meta.revision >= MAX_WRAPS:  # a wrap that is kept took a revision when its version was written
        text = f"KEK {number} may have made {facts.meta.revision} wraps, of at most {MAX_WRAPS}"
        yield Notice(Subject.KEK_WRAPS, number, 0, text)


def _judge_people(facts: Facts) -> Iterator[Notice]:
    if _find_people(facts):
        text = f"custodians brought root key {facts.generation} back: replace it soon"
        yield Notice(Subject.PEOPLE, facts.generation, 0, text)


def _find_people(facts: Facts) -> int:
    """Return when custodians last brought the current root key back; 0: they never did."""
    record = facts.generations.get(facts.generation)
    return 0 if record is None else record.people_had_it_at


def _find_days(age: int, interval: int) -> int | None:
    """Return how many days ahead a notice is due, 0: it is due now; None: it is too early."""
    left = interval - age
    if left <= 0:
        return 0
    return min((days for days in AHEAD if left <= days * DAY < interval), default=None)


def _tell_age(what: str, number: int, age: int, terms: Terms) -> str:
    return f"{what} {number} is {_days(age)} old, its interval is {_days(terms.interval)}"


def _days(duration: int) -> str:
    days = duration // DAY
    return f"{days} day{'' if days == 1 else 's'}"
