"""Carries out the transitions that `nexus.lifecycle.transitions` decides, action by action."""

import structlog

from common.errors import SealedError
from nexus.keepers.plan import Plan
from nexus.keepers.pool import KeeperPool
from nexus.keys.opened import Serving
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.lifecycle.store_marks import StoreMarks
from nexus.lifecycle.transitions import Action, Event, Situation, Transition, find_transition

_DRAIN_S = 5.0  # for calls in flight when the keys are withdrawn
_HUNG_DRAIN_S = 1.0  # for calls in flight when the store hangs: those that wait for it do not end

log = structlog.get_logger("warden")


class Executor:
    """Used by whoever holds the warden's lock, or by a seal that cannot get it because the store hangs."""

    def __init__(self, lifecycle: Lifecycle, pool: KeeperPool, marks: StoreMarks) -> None:
        self.wake = lifecycle.wake
        self._lifecycle = lifecycle
        self._pool = pool
        self._marks = marks
        self._held: Serving | None = None  # proved, and blocked by a newer mark

    @property
    def held(self) -> Serving | None:
        """The proved key that a newer mark blocks, None when there is none."""
        return self._held

    @property
    def situation(self) -> Situation:
        """Where the nexus stands. Whoever looks without the lock may see a transition halfway."""
        state = self._lifecycle.state
        return Situation(state, is_blocked=state is State.RECOVERING and self._held is not None)

    def find_transition(self, event: Event) -> Transition:
        """Say what follows from *event* now; raises as `transitions.find_transition`."""
        return find_transition(self.situation, event)

    def carry_out(self, transition: Transition) -> None:
        """Take the steps of a transition that needs no key.

        Raises:
            StoreUnavailableError, CorruptRowError: The store does not tell whose shard sets the keepers have to drop.
        """
        for action in transition.actions:
            self._act(action, transition.state)

    def carry_out_with(self, transition: Transition, serving: Serving) -> None:
        """Take the steps of a transition with a proved key, which this takes over.

        Raises:
            SealedError: The nexus was shut for good meanwhile; *serving* is wiped.
        """
        for action in transition.actions:
            match action:
                case Action.HOLD:
                    self._held = serving
                    self._lifecycle.enter(transition.state)
                case Action.STOP_HOLDING:
                    self._held = None
                case Action.INSTALL:
                    self._install(serving)
                case Action.KEEP:
                    self.keep(serving)
                case _:
                    self._act(action, transition.state)

    def keep(self, serving: Serving) -> None:
        """Let every keeper hold its shards and drop what is dead, at the epoch that the store has come to."""
        find_mark = self._marks.make_finder(serving)
        others = serving.others
        pending = None if others.pending is None else others.pending.shard_set
        plan = Plan(serving.shard_set, pending, others.droppable, others.kept, others.newest, leaving=others.leaving)
        self._pool.keep(plan, self._marks.require_book(), find_mark, self._marks.find_epoch())

    def empty(self) -> None:
        """Let every keeper that may hold a shard of any set drop what it holds.

        Raises:
            StoreUnavailableError, CorruptRowError: The store does not tell whose shard sets the keepers have to drop.
        """
        marks, members = self._marks, self._marks.list_keepers()
        self._pool.empty(marks.require_book(), marks.last, marks.find_epoch(), members)

    def wipe_held(self) -> None:
        """Wipe the key that is held, if there is one."""
        held, self._held = self._held, None
        if held is not None:
            held.release()

    def _install(self, serving: Serving) -> None:
        self._marks.begin_serving(serving)
        try:
            self._lifecycle.install(serving)
        except SealedError:
            serving.release()
            raise

    def _act(self, action: Action, state: State) -> None:
        match action:
            case Action.WIPE_HELD:
                self.wipe_held()
            case Action.WITHDRAW:
                self._lifecycle.withdraw(state, seconds=_DRAIN_S)
            case Action.WITHDRAW_WITH_MARK:
                self._lifecycle.withdraw(state, seconds=_DRAIN_S, last_use=self._marks.make_last)
            case Action.WITHDRAW_FOR_GOOD:
                self._lifecycle.withdraw(state, seconds=_HUNG_DRAIN_S, for_good=True)
            case Action.WAKE:
                self.wake.set()
            case Action.EMPTY:
                self.empty()
            case Action.EMPTY_WITHOUT_STORE:
                if self._marks.book is not None:
                    self._pool.empty(self._marks.book, self._marks.last, self._marks.epoch)
            case _:
                raise ValueError(f"{action.name} needs a key")
