"""Init step by step, and what holds when any step fails."""

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.errors import WordsError
from common.keys.recovery_key import ShareHash, challenge_info, seal
from pilot.custody.card import Card
from pilot.custody.ceremony import Begun, Ceremony, InitPlan, State
from pilot.custody.hand_out import FileCustodians, ShareCheck
from pilot.errors import PilotError, UsageError, described
from shardhold._errors import (
    DeadlineError,
    DeniedError,
    InvalidArgumentError,
    UnavailableError,
    WrongStateError,
)
from tests.kit.cards import CLUSTER_ID
from tests.pilot.person import DEADLINE_S

PLAN = InitPlan(keeper_threshold=0, recovery_threshold=2, recovery_shares=3)


@dataclass
class FakeNexus:
    """Does what a nexus promises for an init; `at` says what happens when a call arrives."""

    at: dict[str, BaseException] = field(default_factory=dict)
    state: str = "uninitialised"
    genesis: bytes = b""
    voided: int = 0
    attempt: int = 4
    open_attempt: int | None = None
    answer: bytes = b""
    calls: list[str] = field(default_factory=list)
    # Raised after the work of a call is done: its answer is lost.
    after: dict[str, BaseException] = field(default_factory=dict)

    def _arrive(self, call: str) -> None:
        self.calls.append(call)
        if call in self.at:
            raise self.at[call]

    def _leave(self, call: str) -> None:
        if call in self.after:
            raise self.after.pop(call)

    def begin(self, plan: InitPlan, public_key: bytes, hashes: list[ShareHash]) -> Begun:
        self._arrive("begin")
        assert len(hashes) == plan.recovery_shares
        self.answer = os.urandom(32)
        self.state, self.open_attempt = "initialising", self.attempt
        genesis = b"g" * 32
        challenge = seal(self.answer, public_key, challenge_info(CLUSTER_ID, self.attempt, genesis))
        self._leave("begin")
        return Begun(self.attempt, CLUSTER_ID, genesis, challenge, self.voided)

    def confirm(self, attempt: int, answer: bytes) -> tuple[int, int]:
        self._arrive("confirm")
        if self.genesis == b"g" * 32:
            return 4, 4
        if attempt != self.open_attempt:
            raise WrongStateError("the attempt is void")
        if answer != self.answer:
            raise InvalidArgumentError("answer: wrong")
        self.state, self.genesis, self.open_attempt = "ready", b"g" * 32, None
        self._leave("confirm")
        return 4, 4

    def abort(self, attempt: int) -> None:
        self._arrive("abort")
        if attempt != self.open_attempt:
            raise WrongStateError("the attempt is void")
        self.open_attempt = None

    def load_state(self) -> State:
        self._arrive("status")
        return State(self.state, self.genesis)


class Custodians:
    """Reliable people, except where *fails* says otherwise; like files, but without files."""

    def __init__(self, **fails: BaseException) -> None:
        self._fails = fails
        self._keep: list[str] = []
        self.discarded = False
        self.before_read_back: Callable[[], None] = lambda: None

    def prepare(self) -> None:
        if "prepare" in self._fails:
            raise self._fails["prepare"]

    def hand_out(self, cards: Sequence[Card]) -> None:
        self._keep = [card.words for card in cards]
        if "hand_out" in self._fails:
            raise self._fails["hand_out"]

    def read_back(self, check: ShareCheck) -> list[str]:
        if "read_back" in self._fails:
            raise self._fails["read_back"]
        self.before_read_back()
        return self._keep[-check.threshold :]

    def discard(self) -> list[str]:
        self.discarded = True
        return ["destroy the cards"]


def hold(nexus: FakeNexus, custodians: Custodians, said: list[str] | None = None) -> Ceremony:
    return Ceremony(nexus, custodians, clock=SystemClock(), say=(said if said is not None else []).append, patience=0)


def test_init() -> None:
    """When all goes well, the answer comes from the shares read back, and the keepers are reported."""
    nexus, custodians = FakeNexus(), Custodians()
    initialised = hold(nexus, custodians).run(PLAN)
    assert (initialised.keepers_filled, initialised.keepers_wanted) == (4, 4)
    assert nexus.calls == ["begin", "confirm"]
    assert not custodians.discarded


def test_a_voided_attempt_is_named() -> None:
    """When this attempt voids an earlier one, pilot says to destroy its cards."""
    said: list[str] = []
    hold(FakeNexus(voided=3), Custodians(), said).run(PLAN)
    assert said == ["attempt 3 is void: its share cards open nothing, destroy them"]


def test_init_with_files(tmp_path: Path) -> None:
    """An init with real files succeeds, and the files stay."""
    Ceremony(FakeNexus(), FileCustodians(tmp_path / "s"), clock=SystemClock(), say=print).run(PLAN)
    assert len(list((tmp_path / "s").iterdir())) == 3


VOID = "attempt 4 is void, the cluster is not initialised"
UNANSWERED = "attempt 4 was not proved and will not become a cluster"
UNKNOWN = "it is not known yet whether the cluster is initialised: keep all share cards"
NOTHING_BEGUN = "this attempt initialised nothing"


@pytest.mark.parametrize(
    ("nexus", "custodians", "exit_code", "said", "discarded"),
    [
        pytest.param(
            FakeNexus(),
            Custodians(prepare=UsageError("full")),
            2,
            "full",
            False,
            id="no place for cards: nothing began",
        ),
        pytest.param(
            FakeNexus({"begin": DeniedError("no")}), Custodians(), 4, "no", True, id="begin refused: nothing began"
        ),
        pytest.param(
            FakeNexus({"begin": WrongStateError("BeginInit in state ready")}),
            Custodians(),
            1,
            "init needs an empty store",
            True,
            id="initialised already",
        ),
        pytest.param(
            FakeNexus({"begin": UnavailableError("gone")}),
            Custodians(),
            5,
            NOTHING_BEGUN,
            True,
            id="nexus gone at begin",
        ),
        pytest.param(
            FakeNexus({"begin": KeyboardInterrupt()}), Custodians(), 130, NOTHING_BEGUN, True, id="Ctrl-C at begin"
        ),
        pytest.param(
            FakeNexus(),
            Custodians(hand_out=KeyboardInterrupt()),
            130,
            VOID,
            True,
            id="Ctrl-C while cards are handed out",
        ),
        pytest.param(
            FakeNexus(), Custodians(read_back=KeyboardInterrupt()), 130, VOID, True, id="Ctrl-C during the proof"
        ),
        pytest.param(
            FakeNexus(), Custodians(read_back=EOFError()), 130, VOID, True, id="terminal closed during the proof"
        ),
        pytest.param(
            FakeNexus(), Custodians(read_back=WordsError("wrong words")), 1, VOID, True, id="wrong words in the proof"
        ),
        pytest.param(
            FakeNexus({"abort": UnavailableError("gone")}),
            Custodians(read_back=KeyboardInterrupt()),
            130,
            UNANSWERED,
            True,
            id="Ctrl-C during the proof, nexus gone",
        ),
        pytest.param(
            FakeNexus({"abort": KeyboardInterrupt()}),
            Custodians(read_back=KeyboardInterrupt()),
            130,
            UNANSWERED,
            True,
            id="Ctrl-C during the proof, and again",
        ),
        pytest.param(
            FakeNexus({"confirm": WrongStateError("void")}), Custodians(), 1, VOID, True, id="confirmation refused"
        ),
        pytest.param(
            FakeNexus({"confirm": KeyboardInterrupt()}), Custodians(), 130, VOID, True, id="Ctrl-C before the commit"
        ),
        pytest.param(
            FakeNexus({"confirm": UnavailableError("gone"), "status": UnavailableError("gone")}),
            Custodians(),
            5,
            UNKNOWN,
            False,
            id="nexus gone at confirm and after it",
        ),
        pytest.param(
            FakeNexus({"confirm": DeadlineError("late"), "abort": DeadlineError("late")}),
            Custodians(),
            5,
            UNKNOWN,
            False,
            id="no answer at confirm, none to abort",
        ),
        pytest.param(
            FakeNexus({"confirm": KeyboardInterrupt(), "status": KeyboardInterrupt()}),
            Custodians(),
            130,
            UNKNOWN,
            False,
            id="Ctrl-C at confirm, and again",
        ),
    ],
)
def test_when_a_step_fails(
    nexus: FakeNexus, custodians: Custodians, exit_code: int, said: str, discarded: bool
) -> None:
    """The error says what is true now; cards are removed only when they certainly open nothing."""
    with pytest.raises(PilotError) as caught, described():
        hold(nexus, custodians).run(PLAN)
    assert caught.value.exit_code == exit_code
    assert said in "\n".join([str(caught.value), *caught.value.hints])
    assert custodians.discarded is discarded
    assert not nexus.genesis


@pytest.mark.parametrize(
    "lost", [UnavailableError("gone"), DeadlineError("late"), KeyboardInterrupt()], ids=["gone", "late", "Ctrl-C"]
)
def test_a_lost_answer_to_the_commit_is_found_out(lost: BaseException) -> None:
    """When the commit happened but its answer was lost, the cluster is initialised and the cards are kept."""
    nexus, custodians = FakeNexus(after={"confirm": lost}), Custodians()
    initialised = hold(nexus, custodians).run(PLAN)
    assert initialised.keepers_filled is None
    assert not custodians.discarded


def test_an_unanswered_confirmation_is_repeated() -> None:
    """An unanswered confirmation is repeated with the same answer until pilot's patience is used up."""
    nexus, custodians = FakeNexus(after={"confirm": UnavailableError("gone")}), Custodians()
    ceremony = Ceremony(nexus, custodians, clock=SystemClock(), say=print, patience=DEADLINE_S)
    assert ceremony.run(PLAN).keepers_filled == 4
    assert nexus.calls == ["begin", "confirm", "confirm"]


def test_ctrl_c_between_two_confirmations() -> None:
    """A Ctrl-C between two confirmations is answered with what is true now, as during the call."""

    class Impatient(SystemClock):
        def wait(self, event: threading.Event, seconds: float) -> bool:
            raise KeyboardInterrupt

    gone = UnavailableError("gone")
    nexus, custodians = FakeNexus({"confirm": gone, "status": gone}), Custodians()
    with pytest.raises(PilotError) as caught:
        Ceremony(nexus, custodians, clock=Impatient(), say=print, patience=DEADLINE_S).run(PLAN)
    assert (caught.value.exit_code, caught.value.hints[0]) == (130, UNKNOWN)
    assert not custodians.discarded


def test_a_commit_that_was_under_way_is_not_thrown_away() -> None:
    """If the nexus commits between status and abort it refuses the abort; then its state decides and cards are kept."""

    class Slow(FakeNexus):
        def abort(self, attempt: int) -> None:
            self.state, self.genesis, self.open_attempt = "ready", b"g" * 32, None
            super().abort(attempt)

    nexus, custodians = Slow({"confirm": KeyboardInterrupt()}), Custodians()
    assert hold(nexus, custodians).run(PLAN).keepers_filled is None
    assert not custodians.discarded


def test_a_recovering_nexus_keeps_the_cards() -> None:
    """A nexus that recovers after the commit does not show its genesis yet: cards are kept."""
    nexus, custodians = FakeNexus({"confirm": UnavailableError("NEXUS_RECOVERING")}, state="recovering"), Custodians()
    custodians.before_read_back = lambda: setattr(nexus, "state", "recovering")
    with pytest.raises(PilotError) as caught:
        hold(nexus, custodians).run(PLAN)
    assert caught.value.hints[0] == UNKNOWN
    assert not custodians.discarded


def test_another_cluster_makes_the_cards_void() -> None:
    """When another attempt made the cluster, the cards of this one open nothing."""

    def lose() -> None:
        nexus.state, nexus.genesis, nexus.open_attempt = "ready", b"o" * 32, None

    nexus, custodians = FakeNexus(), Custodians()
    custodians.before_read_back = lose
    with pytest.raises(PilotError) as caught:
        hold(nexus, custodians).run(PLAN)
    assert "another one made the cluster" in caught.value.hints[0]
    assert custodians.discarded
