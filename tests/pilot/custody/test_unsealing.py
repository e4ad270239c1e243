"""Guiding a custodian: the genesis first, then the session, then the words; and what happens when a step fails."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from google.protobuf.duration_pb2 import Duration

from common.keys.words import RecoveryShare, read_share, split
from pilot.custody.given_share import GivenShare
from pilot.custody.unsealing import Unsealing, describe_session
from pilot.errors import PilotError, UsageError
from pilot.terminal.terminal import Terminal
from shardhold._errors import (
    DeadlineError,
    DeniedError,
    IntegrityError,
    InvalidArgumentError,
    UnavailableError,
    WrongStateError,
)
from shardhold.v1.recovery_pb2 import GetProgressResponse, SubmitShareResponse, UnsealSession
from tests.pilot.person import Person

CLUSTER_ID, GENESIS, SESSION_ID = bytes(16), bytes(range(32)), b"s" * 16
SHARES = split(bytes(32), 2, 3)
FOREIGN = split(bytes(32), 2, 3)[0]
COMPARE = "Type yes or no: "
WORDS = "0 of 33 words: "


@dataclass
class FakeRecovery:
    """Does what a nexus promises for an unseal; `at` says what happens when a call arrives."""

    state: str = "sealed"
    genesis: bytes = GENESIS
    session_genesis: bytes = GENESIS
    is_open: bool = False
    there: set[int] = field(default_factory=set)
    at: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)

    def _arrive(self, call: str) -> None:
        self.calls.append(call)
        if call in self.at:
            raise self.at.pop(call)

    def _session(self) -> UnsealSession:
        return UnsealSession(
            session_id=SESSION_ID,
            genesis=self.session_genesis,
            expires_in=Duration(seconds=900),
            submitted=len(self.there),
            needed=2,
        )

    def load_state(self) -> str:
        self._arrive("state")
        return self.state

    def load_progress(self) -> GetProgressResponse:
        self._arrive("progress")
        progress = GetProgressResponse(cluster_id=CLUSTER_ID, genesis=self.genesis, recovery_threshold=2)
        if self.is_open:
            progress.session.CopyFrom(self._session())
        return progress

    def start(self) -> UnsealSession:
        self._arrive("start")
        self.is_open = True
        return self._session()

    def submit(
        self, share: RecoveryShare, *, cluster_id: bytes, session_id: bytes, genesis: bytes
    ) -> SubmitShareResponse:
        self._arrive("submit")
        assert (cluster_id, session_id, genesis) == (CLUSTER_ID, SESSION_ID, GENESIS)
        if share.words not in SHARES:
            raise InvalidArgumentError("these words are no share of this cluster's recovery key")
        if share.number in self.there:
            raise WrongStateError(f"share {share.number} was submitted before")
        self.there.add(share.number)
        ready = len(self.there) == 2
        return SubmitShareResponse(number=share.number, submitted=len(self.there), needed=2, ready=ready)


@pytest.fixture
def nobody() -> Iterator[Terminal]:
    """Return what automation has instead of a terminal."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as source, os.fdopen(write_end, "w") as screen:
        yield Terminal(source, screen)


def give(share: str, genesis: bytes | None = GENESIS) -> GivenShare:
    return GivenShare(read_share(share), genesis)


def test_one_custodian_at_a_terminal() -> None:
    """The fingerprint is shown as on the card and confirmed, a session opened, and the words taken hidden."""
    person, recovery, said = Person(), FakeRecovery(), list[str]()
    person.act((COMPARE, "YES"), (WORDS, SHARES[1]))
    accepted = Unsealing(recovery, terminal=person.terminal, say=said.append).run(None, genesis=None, starts=True)
    assert (accepted.number, accepted.submitted, accepted.needed, accepted.ready) == (2, 1, 2, False)
    assert recovery.calls == ["progress", "start", "submit"]
    assert said == ["0 of 2 shares submitted; the session ends within 15 minutes"]
    seen = person.leave()
    assert "0001 0203 0405 0607 0809 0a0b 0c0d 0e0f\r\n    1011 1213" in seen
    assert CLUSTER_ID.hex() in seen
    assert SHARES[1].split(maxsplit=1)[1] not in seen


def test_second_custodian_joins() -> None:
    """An open session is joined; the last share makes the nexus ready."""
    person, recovery, said = Person(), FakeRecovery(is_open=True, there={1}), list[str]()
    person.act((COMPARE, "yes"), (WORDS, SHARES[2]))
    accepted = Unsealing(recovery, terminal=person.terminal, say=said.append).run(None, genesis=None, starts=True)
    assert accepted.ready
    assert recovery.calls == ["progress", "submit"]
    assert said == ["1 of 2 shares submitted; the session ends within 15 minutes"]
    person.leave()


def test_a_share_that_the_nexus_refuses_is_asked_for_again() -> None:
    """When the nexus refuses a share of another cluster, the custodian tries again in the same session."""
    person, recovery = Person(), FakeRecovery()
    person.act((COMPARE, "yes"), (WORDS, FOREIGN), ("not accepted: these words are no share", ""), (WORDS, SHARES[0]))
    accepted = Unsealing(recovery, terminal=person.terminal, say=print).run(None, genesis=None, starts=True)
    assert accepted.number == 1
    assert recovery.calls == ["progress", "start", "submit", "submit"]
    person.leave()


@pytest.mark.parametrize("answer", ["no", "", "y", "yes!"])
def test_a_genesis_that_is_not_confirmed_ends_it(answer: str) -> None:
    """Any answer but yes ends it: no session is opened and no word asked for."""
    person, recovery = Person(), FakeRecovery()
    person.act((COMPARE, answer))
    with pytest.raises(PilotError, match="not confirmed; nothing was submitted") as caught:
        Unsealing(recovery, terminal=person.terminal, say=print).run(None, genesis=None, starts=True)
    assert "someone replaced the database" in caught.value.hints[0]
    assert recovery.calls == ["progress"]
    assert "words" not in person.leave()


@pytest.mark.parametrize(
    ("given", "genesis"),
    [
        pytest.param(give(SHARES[0], b"x" * 32), None, id="of the card"),
        pytest.param(give(SHARES[0], None), b"x" * 32, id="of the option"),
        pytest.param(give(SHARES[0], b"x" * 32), GENESIS, id="of the card, though the option's is right"),
        pytest.param(give(SHARES[0]), b"x" * 32, id="of the option, though the card's is right"),
    ],
)
def test_another_genesis_ends_it(given: GivenShare, genesis: bytes | None, nobody: Terminal) -> None:
    """A fingerprint that differs from the card's or the given one ends it before anything is opened or submitted."""
    recovery = FakeRecovery()
    with pytest.raises(PilotError, match="the genesis of this nexus is 0001 0203 .* nothing was submitted"):
        Unsealing(recovery, terminal=nobody, say=print).run(given, genesis=genesis, starts=True)
    assert recovery.calls == ["progress"]


@pytest.mark.parametrize(
    ("given", "genesis"),
    [
        pytest.param(give(SHARES[0]), None, id="a card"),
        pytest.param(give(SHARES[0], None), GENESIS, id="words, and the fingerprint"),
        pytest.param(give(SHARES[0]), GENESIS, id="both"),
    ],
)
def test_automation_needs_nobody(given: GivenShare, genesis: bytes | None, nobody: Terminal) -> None:
    """When pilot has a fingerprint to compare, nobody is asked."""
    said: list[str] = []
    accepted = Unsealing(FakeRecovery(), terminal=nobody, say=said.append).run(given, genesis=genesis, starts=True)
    assert accepted.number == 1
    assert "its genesis fingerprint is that of the card" in said[0]


@pytest.mark.parametrize(
    ("given", "hint", "calls"),
    [
        pytest.param(None, "@FILE", [], id="no words either: no call is made"),
        pytest.param(give(SHARES[0], None), "--genesis HEX", ["progress"], id="words without a card"),
    ],
)
def test_without_a_terminal_somebody_is_missing(
    given: GivenShare | None, hint: str, calls: list[str], nobody: Terminal
) -> None:
    """Where a person must look or type but there is no terminal, the error names the option to use instead."""
    recovery = FakeRecovery()
    with pytest.raises(UsageError, match="no terminal") as caught:
        Unsealing(recovery, terminal=nobody, say=print).run(given, genesis=None, starts=True)
    assert hint in caught.value.hints[0]
    assert recovery.calls == calls


@pytest.mark.parametrize("is_open", [False, True], ids=["opened", "joined"])
def test_a_session_of_another_genesis_than_was_compared_gets_nothing(is_open: bool, nobody: Terminal) -> None:
    """A session whose genesis is not the compared one gets no share: the rows may have been swapped meanwhile."""
    recovery = FakeRecovery(session_genesis=bytes(32), is_open=is_open)
    with pytest.raises(PilotError, match=r"session has genesis 0000 0000 .* nothing was submitted"):
        Unsealing(recovery, terminal=nobody, say=print).run(give(SHARES[0]), genesis=None, starts=True)
    assert "submit" not in recovery.calls


def test_a_nexus_without_a_genesis_gets_nothing(nobody: Terminal) -> None:
    """An empty fingerprint cannot be compared, so nothing is submitted."""
    with pytest.raises(PilotError, match="names no genesis"):
        Unsealing(FakeRecovery(genesis=b""), terminal=nobody, say=print).run(give(SHARES[0]), genesis=None, starts=True)


@pytest.mark.parametrize(
    ("recovery", "starts", "error", "said"),
    [
        pytest.param(FakeRecovery(), False, PilotError, "no session is open", id="submit without a session"),
        pytest.param(
            FakeRecovery("ready", at={"progress": WrongStateError("not in ready")}),
            True,
            PilotError,
            "the nexus is ready: there is nothing to unseal",
            id="the nexus is ready",
        ),
        pytest.param(
            FakeRecovery("uninitialised", at={"progress": WrongStateError("no")}),
            True,
            PilotError,
            "the nexus is uninitialised: there is nothing to unseal",
            id="the nexus was never initialised",
        ),
        pytest.param(
            FakeRecovery("ready", is_open=True, at={"submit": WrongStateError("no such session")}),
            True,
            PilotError,
            "the nexus is ready: there is nothing to unseal",
            id="the others were faster",
        ),
        pytest.param(
            FakeRecovery(is_open=True, there={1}),
            True,
            PilotError,
            "share 1 was submitted before",
            id="the same share twice",
        ),
        pytest.param(
            FakeRecovery(is_open=True, at={"submit": UnavailableError("gone")}),
            True,
            PilotError,
            "gone",
            id="no answer to the share",
        ),
        pytest.param(
            FakeRecovery(is_open=True, at={"submit": DeadlineError("late")}), True, PilotError, "late", id="too late"
        ),
        pytest.param(
            FakeRecovery(at={"start": IntegrityError("escrow is not the one")}),
            True,
            IntegrityError,
            "escrow",
            id="an escrow outside of the chain",
        ),
        pytest.param(
            FakeRecovery(is_open=True, at={"submit": InvalidArgumentError("no share of ours")}),
            True,
            InvalidArgumentError,
            "no share of ours",
            id="a wrong share from a file is not tried twice",
        ),
        pytest.param(FakeRecovery(at={"progress": DeniedError("no")}), True, DeniedError, "no", id="the wrong role"),
    ],
)
def test_when_a_step_fails(
    recovery: FakeRecovery, starts: bool, error: type[Exception], said: str, nobody: Terminal
) -> None:
    """The error says what is true, and pilot repeats nothing by itself."""
    with pytest.raises(error, match=said):
        Unsealing(recovery, terminal=nobody, say=print).run(give(SHARES[0]), genesis=None, starts=starts)
    assert recovery.calls.count("submit") <= 1
    assert not recovery.there - {1}


def test_when_the_answer_is_lost_it_says_where_to_look(nobody: Terminal) -> None:
    """A share whose answer is lost may have arrived: the hint says how to see whether it did."""
    recovery = FakeRecovery(is_open=True, at={"submit": UnavailableError("gone")})
    with pytest.raises(PilotError) as caught:
        Unsealing(recovery, terminal=nobody, say=print).run(give(SHARES[0]), genesis=None, starts=True)
    assert "'pilot unseal status'" in caught.value.hints[0]
    assert caught.value.exit_code == 5


def test_two_custodians_start_at_once(nobody: Terminal) -> None:
    """The second of two custodians who start at once joins the session that the first opened."""

    class Overtaken(FakeRecovery):
        def start(self) -> UnsealSession:
            self.is_open = True
            self._arrive("start")
            raise WrongStateError("a session is open")

    recovery = Overtaken()
    accepted = Unsealing(recovery, terminal=nobody, say=print).run(give(SHARES[0]), genesis=None, starts=True)
    assert accepted.submitted == 1
    assert recovery.calls == ["progress", "start", "progress", "submit"]


@pytest.mark.parametrize(
    ("seconds", "left"), [(900, "15 minutes"), (61, "2 minutes"), (60, "a minute"), (1, "a minute"), (0, "a minute")]
)
def test_time_left_is_rounded_up(seconds: int, left: str) -> None:
    """The time left is shown as a limit, in whole minutes rounded up."""
    session = UnsealSession(expires_in=Duration(seconds=seconds), submitted=1, needed=3)
    assert describe_session(session) == f"1 of 3 shares submitted; the session ends within {left}"
