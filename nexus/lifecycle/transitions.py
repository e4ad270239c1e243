"""How a nexus gets into ready and out of it: pure rules, no I/O. `nexus.lifecycle.warden` says what has happened.

1. A key comes here proved (`nexus.keys.opened.prove`), whether keepers or custodians brought it back.
2. A rollback mark that is newer than the store blocks: the proved key is held, and nothing is served with it, until a
   superuser accepts the older store. A newer mark that comes while the nexus is ready ends ready, and so does a store
   that is not as this nexus left it. Audit files that are not those that store and keepers remember block in the same
   way, until a new chain is accepted.
3. A key that custodians brought back, and one that is held when something is accepted, get a new shard set. The set is
   committed before the key is installed. Its shards are delivered afterwards; ready does not wait for them.
4. The warden's thread is woken before the keepers get a new duty: a recovery that is under way then gives them none.
5. A seal is committed first. Then the keys are withdrawn, with a last mark of where the store stood; then the keepers
   are emptied.
6. A seal that was refused withdraws the keys and empties the keepers all the same; afterwards the process ends.
7. When the store hangs, nothing waits for it or for a call that waits for it, and no mark is made. The keys are then
   withdrawn for good before the held key is wiped: a call that still waits for the store cannot install a key.
"""

import enum
from dataclasses import dataclass

from common.errors import WrongStateError
from nexus.lifecycle.states import State


@dataclass(frozen=True, slots=True)
class Situation:
    """Where the nexus stands."""

    state: State
    is_blocked: bool = False  # recovering, and a proved key is held (rule 2)

    def __str__(self) -> str:
        return f"{self.state}, blocked" if self.is_blocked else str(self.state)


class Event(enum.StrEnum):
    """What has happened."""

    CLUSTER_FOUNDED = "init committed a new cluster"
    KEY_FROM_KEEPERS = "keepers brought a key back"
    KEY_FROM_CUSTODIANS = "custodians brought a key back"
    KEY_BEHIND_MARK = "a key came back, and the store is older than a mark"
    KEY_WITHOUT_AUDIT = "a key came back, and the audit files are not those that are remembered"
    OLDER_STORE_ACCEPTED = "a superuser accepted the older store"
    NEW_CHAIN_ACCEPTED = "somebody accepted that a new chain of the audit begins"
    NEWER_MARK = "a mark newer than the store came"
    AUDIT_GAP = "a mark came of lines that the audit files lack"
    STORE_LOST = "the store is not as this nexus left it"
    SEAL_COMMITTED = "a seal was committed"
    SEAL_REFUSED = "a seal could not be committed"
    STORE_HANGS = "a seal was asked for, and the store does not answer"


class Action(enum.Enum):
    """One step of a transition. The steps are taken in order, and each may rely on those before it."""

    HOLD = enum.auto()  # keep the proved key, and serve nothing with it
    STOP_HOLDING = enum.auto()  # it is the key that is installed next
    WIPE_HELD = enum.auto()
    INSTALL = enum.auto()  # serve with the key
    WITHDRAW = enum.auto()  # refuse new calls, let those in flight end, then wipe the keys
    WITHDRAW_WITH_MARK = enum.auto()  # the same; the last mark is made after the last call, which may still commit
    WITHDRAW_FOR_GOOD = enum.auto()  # the same without a mark and without much patience; no key is installed afterwards
    WAKE = enum.auto()  # the warden's thread
    KEEP = enum.auto()  # let every keeper hold its shard
    EMPTY = enum.auto()  # let every keeper take the last mark, and drop what it holds
    EMPTY_WITHOUT_STORE = enum.auto()  # the same, if what it needs of the store is known already


@dataclass(frozen=True, slots=True)
class Transition:
    """Where the nexus goes, and how."""

    state: State
    actions: tuple[Action, ...]
    replaces_set: bool = False  # a new shard set has to be committed before the first action (rule 3)


class Duty(enum.StrEnum):
    """What the warden's thread does in between."""

    RECOVER = "bring the key back from the keepers"
    CHECK_MARKS = "look at the store, and for marks newer than it"
    EMPTY = "empty the keepers, also after a restart"
    REST = "wait until something happens"


_SERVE = (Action.INSTALL, Action.WAKE, Action.KEEP)
_HOLD = (Action.WIPE_HELD, Action.HOLD, Action.WAKE)
_SHUT = (Action.WIPE_HELD, Action.WITHDRAW_WITH_MARK, Action.WAKE, Action.EMPTY)
_SHUT_WITHOUT_STORE = (Action.WITHDRAW_FOR_GOOD, Action.WIPE_HELD, Action.WAKE, Action.EMPTY_WITHOUT_STORE)

_RECOVERING, _BLOCKED = Situation(State.RECOVERING), Situation(State.RECOVERING, is_blocked=True)
_SEALED, _READY = Situation(State.SEALED), Situation(State.READY)
_ANY = frozenset({Situation(state) for state in State} | {_BLOCKED})
_KEYLESS = frozenset({_RECOVERING, _BLOCKED, _SEALED})

_ACCEPTED = Transition(State.READY, (Action.STOP_HOLDING, *_SERVE), replaces_set=True)

# By event: the situations that it fits, and what follows.
_TRANSITIONS = {
    Event.CLUSTER_FOUNDED: (_ANY, Transition(State.READY, _SERVE)),
    Event.KEY_FROM_KEEPERS: (frozenset({_RECOVERING, _BLOCKED}), Transition(State.READY, _SERVE)),
    Event.KEY_FROM_CUSTODIANS: (_KEYLESS, Transition(State.READY, _SERVE, replaces_set=True)),
    Event.KEY_BEHIND_MARK: (_KEYLESS, Transition(State.RECOVERING, _HOLD)),
    Event.KEY_WITHOUT_AUDIT: (_KEYLESS, Transition(State.RECOVERING, _HOLD)),
    Event.OLDER_STORE_ACCEPTED: (frozenset({_BLOCKED}), _ACCEPTED),
    Event.NEW_CHAIN_ACCEPTED: (frozenset({_BLOCKED}), _ACCEPTED),
    Event.NEWER_MARK: (frozenset({_READY}), Transition(State.RECOVERING, (Action.WITHDRAW,))),
    Event.AUDIT_GAP: (frozenset({_READY}), Transition(State.RECOVERING, (Action.WITHDRAW,))),
    Event.STORE_LOST: (frozenset({_READY}), Transition(State.RECOVERING, (Action.WITHDRAW,))),
    Event.SEAL_COMMITTED: (_ANY, Transition(State.SEALED, _SHUT)),
    Event.SEAL_REFUSED: (_ANY, Transition(State.SEALED, _SHUT)),  # rule 6
    Event.STORE_HANGS: (_ANY, Transition(State.SEALED, _SHUT_WITHOUT_STORE)),  # rule 7
}


def find_transition(situation: Situation, event: Event) -> Transition:
    """Say what follows from *event*.

    Raises:
        WrongStateError: It does not fit the situation; nothing follows.
    """
    situations, transition = _TRANSITIONS[event]
    if situation not in situations:
        raise WrongStateError(f"the nexus is {situation} meanwhile")
    return transition


def find_duty(situation: Situation) -> Duty:
    """Say what the warden's thread has to do now."""
    match situation.state:
        case State.RECOVERING if not situation.is_blocked:
            return Duty.RECOVER
        case State.READY:
            return Duty.CHECK_MARKS
        case State.SEALED:
            return Duty.EMPTY
        case _:
            return Duty.REST
