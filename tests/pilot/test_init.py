"""Init: custodians at a real terminal or as files, and what is true when any step fails."""

import os
import re
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.errors import WordsError
from common.recovery_key import ShareHash, challenge_info, hash_share, seal
from common.words import encode_share, split
from pilot.card import Card, read_words
from pilot.ceremony import Begun, Ceremony, Plan, State
from pilot.custodians import FileCustodians, ScreenCustodians, ShareCheck
from pilot.errors import PilotError, UsageError, described
from pilot.terminal import Terminal
from shardhold._errors import (
    DeadlineError,
    DeniedError,
    InvalidArgumentError,
    UnavailableError,
    WrongStateError,
)
from tests.pilot.cards import CLUSTER_ID, make_cards
from tests.pilot.person import DEADLINE_S, Person

PLAN = Plan(keeper_threshold=0, recovery_threshold=2, recovery_shares=3)


SHARES = split(bytes(32), 2, 3)
CHECK = ShareCheck([hash_share(encode_share(share)) for share in SHARES], threshold=2)


def test_share_check() -> None:
    """Shares of this attempt pass; mistyped ones and good ones of another attempt do not."""
    assert [CHECK.check(share.upper()).number for share in SHARES] == [1, 2, 3]
    with pytest.raises(WordsError, match="not one of this attempt"):
        CHECK.check(split(bytes(32), 2, 3)[0])
    with pytest.raises(WordsError, match="not one of this attempt"):
        CHECK.check(split(bytes(32), 2, 16)[15])
    with pytest.raises(WordsError, match="word 1 is not in the list"):
        CHECK.check("xyzzy " + SHARES[0])


# Files


def test_files_are_private_and_new(tmp_path: Path) -> None:
    """One file for each custodian, mode 0600 whatever the umask, in a directory of mode 0700."""
    before = os.umask(0o277)
    try:
        custodians = FileCustodians(tmp_path / "shares")
        os.umask(0)
        custodians.prepare()
        custodians.hand_out(make_cards(SHARES))
    finally:
        os.umask(before)
    files = sorted((tmp_path / "shares").iterdir())
    assert [file.name for file in files] == ["custodian-1.txt", "custodian-2.txt", "custodian-3.txt"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert stat.S_IMODE((tmp_path / "shares").stat().st_mode) == 0o700
    assert custodians.read_back(CHECK) == SHARES


def test_files_are_on_the_disk_before_anything_depends_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each card is synced, and behind them the directory, without which a power cut could take their names."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    FileCustodians(tmp_path).hand_out(make_cards(SHARES))
    assert synced == [False, False, False, True]


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    """Nothing is written beside other files, nor where no directory can be."""
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        FileCustodians(tmp_path).prepare()
    with pytest.raises(UsageError, match="File exists"):
        FileCustodians(tmp_path / "x").prepare()
    with pytest.raises(UsageError, match="No such file"):
        FileCustodians(tmp_path / "y" / "z").prepare()


def test_what_lies_there_is_set_aside_and_kept(tmp_path: Path) -> None:
    """Each time in a new folder, once there are new shares; it comes back when those are void."""
    (tmp_path / "custodian-1.txt").write_text("first")
    before = load_files(tmp_path)
    for hands_out in (False, True):
        custodians = FileCustodians(tmp_path, set_aside=True)
        custodians.prepare()
        if hands_out:
            custodians.hand_out(make_cards(SHARES))
            assert (tmp_path / "earlier-1" / "custodian-1.txt").read_text() == "first"
        custodians.discard()
        assert load_files(tmp_path) == before
    for number in (1, 2):
        custodians = FileCustodians(tmp_path, set_aside=True)
        custodians.prepare()
        custodians.hand_out(make_cards(SHARES))
        assert custodians.read_back(CHECK) == SHARES
        assert len(load_files(tmp_path)) == 1 + number * len(SHARES)


def load_files(folder: Path) -> dict[str, str]:
    """Load all files below a folder."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_that_came_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    """A file or link of the same name stops the hand-out, and stays; what was written before goes."""
    custodians = FileCustodians(tmp_path)
    custodians.prepare()
    (tmp_path / "custodian-2.txt").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PilotError, match=r"custodian-2\.txt: File exists"):
        custodians.hand_out(make_cards(SHARES))
    assert custodians.discard() == ["the share files opened nothing and were removed"]
    assert [path.name for path in tmp_path.iterdir()] == ["custodian-2.txt"]


def test_a_changed_file_fails_the_proof(tmp_path: Path) -> None:
    """The proof reads what is on disk: a changed word is found and the file named."""
    custodians = FileCustodians(tmp_path)
    custodians.prepare()
    custodians.hand_out(make_cards(SHARES))
    file = tmp_path / "custodian-3.txt"
    file.write_text(file.read_text().replace(f" 5 {SHARES[2].split()[4]} ", " 5 xyzzy "))
    with pytest.raises(PilotError, match=r"custodian-3\.txt: .*word 5 is not in the list"):
        custodians.read_back(CHECK)


# Terminal


def test_hidden_answers_are_not_shown() -> None:
    """While a hidden question waits there is no echo, and afterwards there is again."""
    person = Person()
    person.act(("value: ", "hunter2"), ("name: ", "visible"))
    assert person.terminal.ask_hidden("value: ") == "hunter2"
    assert person.is_echoing()
    assert person.terminal.ask("name: ") == "visible"
    seen = person.leave()
    assert "hunter2" not in seen
    assert "visible" in seen


def test_without_a_terminal_nobody_is_asked() -> None:
    """A pipe is no terminal."""
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end) as source,
        os.fdopen(write_end, "w") as screen,
        pytest.raises(UsageError, match="no terminal"),
    ):
        ScreenCustodians(Terminal(source, screen)).prepare()


def test_custodians_at_a_screen() -> None:
    """Each card is shown alone and cleared away; words are asked for hidden, until enough people's are right."""
    person = Person()
    custodians = ScreenCustodians(person.terminal)
    custodians.prepare()
    enter = [
        line
        for number in (1, 2, 3)
        for line in ((f"custodian {number} of 3: press Enter", ""), ("press Enter when every word", ""))
    ]
    person.act(
        *enter,
        ("(1 of 2): ", "not even near"),
        ("(1 of 2): ", SHARES[0] + " again"),
        ("(1 of 2): ", SHARES[2].upper()),
        ("(2 of 2): ", SHARES[2]),
        ("(2 of 2): ", SHARES[0]),
    )
    custodians.hand_out(make_cards(SHARES))
    assert custodians.read_back(CHECK) == [SHARES[2], SHARES[0]]
    seen = person.leave()
    for answer in (
        "word 1 is not in the list",
        "got 34 words, want 33",
        "custodian 3: right",
        "custodian 3 was already here",
    ):
        assert answer in seen
    screens = re.findall(
        r"\x1b\[\?1049h\x1b\[3J\x1b\[2J\x1b\[H(.*?)\x1b\[3J\x1b\[2J\x1b\[H\x1b\[\?1049l", seen, re.DOTALL
    )
    assert [read_words(screen.replace("\r\n", "\n")) for screen in screens] == SHARES
    outside = re.sub(r"\x1b\[\?1049h.*?\x1b\[\?1049l", "", seen, flags=re.DOTALL)
    for share in SHARES:
        assert not any(f"{one} {next_one}" in outside for one, next_one in pairwise(share.split()))
    assert custodians.discard() == [
        "destroy the cards of custodians 1, 2, 3 (attempt 4, genesis 0001 0203 …): they open nothing"
    ]


# Ceremony


@dataclass
class FakeNexus:
    """Does what a nexus promises of an init; `at` has what happens when a call arrives."""

    at: dict[str, BaseException] = field(default_factory=dict)
    state: str = "uninitialised"
    genesis: bytes = b""
    voided: int = 0
    attempt: int = 4
    open_attempt: int | None = None
    answer: bytes = b""
    calls: list[str] = field(default_factory=list)
    # Raised after the work of a call was done: its answer is lost.
    after: dict[str, BaseException] = field(default_factory=dict)

    def _arrive(self, call: str) -> None:
        self.calls.append(call)
        if call in self.at:
            raise self.at[call]

    def _leave(self, call: str) -> None:
        if call in self.after:
            raise self.after.pop(call)

    def begin(self, plan: Plan, public_key: bytes, hashes: list[ShareHash]) -> Begun:
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
    """Reliable people, but for what *fails*; like files, without files."""

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
    """All goes well: the answer comes from the shares read back, and the keepers are told of."""
    nexus, custodians = FakeNexus(), Custodians()
    initialised = hold(nexus, custodians).run(PLAN)
    assert (initialised.keepers_filled, initialised.keepers_wanted) == (4, 4)
    assert nexus.calls == ["begin", "confirm"]
    assert not custodians.discarded


def test_a_voided_attempt_is_named() -> None:
    """The cards of an attempt that this one made void are to be destroyed."""
    said: list[str] = []
    hold(FakeNexus(voided=3), Custodians(), said).run(PLAN)
    assert said == ["attempt 3 is void: share cards of it open nothing, destroy them"]


def test_init_with_files(tmp_path: Path) -> None:
    """With real files the same, and the files stay."""
    Ceremony(FakeNexus(), FileCustodians(tmp_path / "s"), clock=SystemClock(), say=print).run(PLAN)
    assert len(list((tmp_path / "s").iterdir())) == 3


VOID = "attempt 4 is void, the cluster is not initialised"
UNANSWERED = "attempt 4 was not proved and will not become a cluster"
UNKNOWN = "nobody can say now whether the cluster is initialised: keep all share cards"
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
            "init makes a first cluster: in an empty store",
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
    """The error says what is true now; cards go only when they are certain to open nothing."""
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
    """When the commit happened and its answer was lost, the cluster is initialised and the cards are kept."""
    nexus, custodians = FakeNexus(after={"confirm": lost}), Custodians()
    initialised = hold(nexus, custodians).run(PLAN)
    assert initialised.keepers_filled is None
    assert not custodians.discarded


def test_an_unanswered_confirmation_is_repeated() -> None:
    """With patience left, the same answer is sent again."""
    nexus, custodians = FakeNexus(after={"confirm": UnavailableError("gone")}), Custodians()
    ceremony = Ceremony(nexus, custodians, clock=SystemClock(), say=print, patience=DEADLINE_S)
    assert ceremony.run(PLAN).keepers_filled == 4
    assert nexus.calls == ["begin", "confirm", "confirm"]


def test_ctrl_c_between_two_confirmations() -> None:
    """Whoever loses patience before pilot does is told what is true, as after a Ctrl-C during the call."""

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
    """A nexus that commits between status and abort refuses the abort; its state then tells, and cards are kept."""

    class Slow(FakeNexus):
        def abort(self, attempt: int) -> None:
            self.state, self.genesis, self.open_attempt = "ready", b"g" * 32, None
            super().abort(attempt)

    nexus, custodians = Slow({"confirm": KeyboardInterrupt()}), Custodians()
    assert hold(nexus, custodians).run(PLAN).keepers_filled is None
    assert not custodians.discarded


def test_a_recovering_nexus_keeps_the_cards() -> None:
    """After the commit a nexus that recovers does not say its genesis yet: cards are kept."""
    nexus, custodians = FakeNexus({"confirm": UnavailableError("NEXUS_RECOVERING")}, state="recovering"), Custodians()
    custodians.before_read_back = lambda: setattr(nexus, "state", "recovering")
    with pytest.raises(PilotError) as caught:
        hold(nexus, custodians).run(PLAN)
    assert caught.value.hints[0] == UNKNOWN
    assert not custodians.discarded


def test_another_cluster_makes_the_cards_void() -> None:
    """When another attempt made the cluster, these cards open nothing."""

    def lose() -> None:
        nexus.state, nexus.genesis, nexus.open_attempt = "ready", b"o" * 32, None

    nexus, custodians = FakeNexus(), Custodians()
    custodians.before_read_back = lose
    with pytest.raises(PilotError) as caught:
        hold(nexus, custodians).run(PLAN)
    assert "another one made the cluster" in caught.value.hints[0]
    assert custodians.discarded
