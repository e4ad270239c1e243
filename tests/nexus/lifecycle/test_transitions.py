"""The transitions of the warden, as pure rules: what each event leads to, and in which order it is done."""

import pytest

from common.errors import WrongStateError
from nexus.lifecycle.states import State
from nexus.lifecycle.transitions import Action, Duty, Event, Situation, find_duty, find_transition

UNINITIALISED = Situation(State.UNINITIALISED)
INITIALISING = Situation(State.INITIALISING)
RECOVERING = Situation(State.RECOVERING)
BLOCKED = Situation(State.RECOVERING, is_blocked=True)
SEALED = Situation(State.SEALED)
READY = Situation(State.READY)
ALL = (UNINITIALISED, INITIALISING, RECOVERING, BLOCKED, SEALED, READY)

SERVE = (Action.INSTALL, Action.WAKE, Action.KEEP)
SHUT = (Action.WIPE_HELD, Action.WITHDRAW_WITH_MARK, Action.WAKE, Action.EMPTY)
SHUT_WITHOUT_STORE = (Action.WITHDRAW_FOR_GOOD, Action.WIPE_HELD, Action.WAKE, Action.EMPTY_WITHOUT_STORE)

# Event, situations that it fits, where it leads, what is done in order, whether a new set is committed before.
CASES = [
    (Event.CLUSTER_FOUNDED, ALL, State.READY, SERVE, False),
    (Event.KEY_FROM_KEEPERS, (RECOVERING, BLOCKED), State.READY, SERVE, False),
    (Event.KEY_FROM_CUSTODIANS, (RECOVERING, BLOCKED, SEALED), State.READY, SERVE, True),
    (
        Event.KEY_BEHIND_MARK,
        (RECOVERING, BLOCKED, SEALED),
        State.RECOVERING,
        (Action.WIPE_HELD, Action.HOLD, Action.WAKE),
        False,
    ),
    (
        Event.KEY_WITHOUT_AUDIT,
        (RECOVERING, BLOCKED, SEALED),
        State.RECOVERING,
        (Action.WIPE_HELD, Action.HOLD, Action.WAKE),
        False,
    ),
    (Event.OLDER_STORE_ACCEPTED, (BLOCKED,), State.READY, (Action.STOP_HOLDING, *SERVE), True),
    (Event.NEW_CHAIN_ACCEPTED, (BLOCKED,), State.READY, (Action.STOP_HOLDING, *SERVE), True),
    (Event.NEWER_MARK, (READY,), State.RECOVERING, (Action.WITHDRAW,), False),
    (Event.AUDIT_GAP, (READY,), State.RECOVERING, (Action.WITHDRAW,), False),
    (Event.STORE_LOST, (READY,), State.RECOVERING, (Action.WITHDRAW,), False),
    (Event.SEAL_COMMITTED, ALL, State.SEALED, SHUT, False),
    (Event.SEAL_REFUSED, ALL, State.SEALED, SHUT, False),
    (Event.STORE_HANGS, ALL, State.SEALED, SHUT_WITHOUT_STORE, False),
]


@pytest.mark.parametrize(
    ("event", "situations", "state", "actions", "replaces_set"),
    [pytest.param(*case, id=case[0].name) for case in CASES],
)
def test_an_event_leads_to_one_state_in_one_order(
    event: Event, situations: tuple[Situation, ...], state: State, actions: tuple[Action, ...], replaces_set: bool
) -> None:
    """From each situation that it fits; from any other it leads nowhere."""
    for situation in ALL:
        if situation in situations:
            transition = find_transition(situation, event)
            assert (transition.state, transition.actions, transition.replaces_set) == (state, actions, replaces_set)
        else:
            with pytest.raises(WrongStateError, match=f"the nexus is {situation} meanwhile"):
                find_transition(situation, event)


def test_every_event_has_its_case() -> None:
    """So that a new one cannot be forgotten above."""
    assert [case[0] for case in CASES] == list(Event)


@pytest.mark.parametrize("actions", [case[3] for case in CASES], ids=[case[0].name for case in CASES])
def test_the_thread_is_woken_before_keepers_get_a_new_duty(actions: tuple[Action, ...]) -> None:
    """Or a recovery that is under way could overrule it."""
    for duty in (Action.KEEP, Action.EMPTY, Action.EMPTY_WITHOUT_STORE):
        if duty in actions:
            assert Action.WAKE in actions[: actions.index(duty)]


@pytest.mark.parametrize("event", [Event.SEAL_COMMITTED, Event.SEAL_REFUSED, Event.STORE_HANGS])
@pytest.mark.parametrize("situation", ALL, ids=str)
def test_keepers_are_emptied_only_after_the_keys_are_withdrawn(situation: Situation, event: Event) -> None:
    """In whatever way a seal ends: a nexus that serves would fill them again."""
    *before, last = find_transition(situation, event).actions
    assert last in (Action.EMPTY, Action.EMPTY_WITHOUT_STORE)
    assert {Action.WITHDRAW_WITH_MARK, Action.WITHDRAW_FOR_GOOD} & set(before)
    assert Action.WIPE_HELD in before


@pytest.mark.parametrize(
    ("situation", "duty"),
    [
        pytest.param(UNINITIALISED, Duty.REST, id="uninitialised"),
        pytest.param(INITIALISING, Duty.REST, id="initialising"),
        pytest.param(RECOVERING, Duty.RECOVER, id="recovering"),
        pytest.param(BLOCKED, Duty.REST, id="blocked"),
        pytest.param(SEALED, Duty.EMPTY, id="sealed"),
        pytest.param(READY, Duty.CHECK_MARKS, id="ready"),
    ],
)
def test_the_thread_has_one_duty_in_each_situation(situation: Situation, duty: Duty) -> None:
    """Until it is woken."""
    assert find_duty(situation) is duty
