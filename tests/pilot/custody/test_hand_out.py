"""Custodians at a real terminal or as files: what each gets, and what is read back."""

import os
import re
import stat
from itertools import pairwise
from pathlib import Path

import pytest

from common.errors import WordsError
from common.keys.recovery_key import hash_share
from common.keys.words import encode_share, split
from pilot.custody.card import read_words
from pilot.custody.hand_out import FileCustodians, ScreenCustodians, ShareCheck
from pilot.errors import PilotError, UsageError
from pilot.terminal.terminal import Terminal
from tests.kit.cards import make_cards
from tests.pilot.person import Person

NO_WORD_YET = "\x1b[K0 of 33 words: "  # and not 10, 20 or 30
SHARES = split(bytes(32), 2, 3)
CHECK = ShareCheck([hash_share(encode_share(share)) for share in SHARES], threshold=2)


def test_share_check() -> None:
    """Shares of this attempt pass; mistyped ones and valid ones of another attempt do not."""
    assert [CHECK.check(share.upper()).number for share in SHARES] == [1, 2, 3]
    with pytest.raises(WordsError, match="not one of this attempt"):
        CHECK.check(split(bytes(32), 2, 3)[0])
    with pytest.raises(WordsError, match="not one of this attempt"):
        CHECK.check(split(bytes(32), 2, 16)[15])
    with pytest.raises(WordsError, match="word 1 is not in the list"):
        CHECK.check("xyzzy " + SHARES[0])


# Files


def test_files_are_private_and_new(tmp_path: Path) -> None:
    """Each custodian gets one file, mode 0600 whatever the umask, in a directory of mode 0700."""
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
    """Each card is synced, then the directory, without which a power cut could lose the names."""
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    FileCustodians(tmp_path).hand_out(make_cards(SHARES))
    assert synced == [False, False, False, True]


def test_a_directory_that_holds_something_is_refused(tmp_path: Path) -> None:
    """Nothing is written beside other files, or where no directory can be created."""
    (tmp_path / "x").touch()
    with pytest.raises(UsageError, match="is not empty"):
        FileCustodians(tmp_path).prepare()
    with pytest.raises(UsageError, match="File exists"):
        FileCustodians(tmp_path / "x").prepare()
    with pytest.raises(UsageError, match="No such file"):
        FileCustodians(tmp_path / "y" / "z").prepare()


def test_what_lies_there_is_set_aside_and_kept(tmp_path: Path) -> None:
    """Existing files go to a new folder each time, once there are new shares, and return when those are void."""
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


def test_what_was_set_aside_replaces_no_file_that_came_meanwhile(tmp_path: Path) -> None:
    """A file that was set aside stays there when a new file has taken its name."""
    (tmp_path / "custodian-1.txt").write_text("first")
    custodians = FileCustodians(tmp_path, set_aside=True)
    custodians.prepare()
    custodians.hand_out(make_cards(SHARES))
    (tmp_path / "earlier-1" / "note.txt").write_text("aside")
    (tmp_path / "note.txt").write_text("came meanwhile")
    custodians.discard()
    kept = {"custodian-1.txt": "first", "note.txt": "came meanwhile", "earlier-1/note.txt": "aside"}
    assert load_files(tmp_path) == kept


def load_files(folder: Path) -> dict[str, str]:
    """Load all files below a folder."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_file_that_came_meanwhile_is_not_written_over(tmp_path: Path) -> None:
    """A file or link of the same name stops the hand-out and stays; files written before are removed."""
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
    """While a hidden question waits there is no echo; afterwards there is again."""
    person = Person()
    person.act(("value: ", "hunter2"), ("name: ", "visible"))
    assert person.terminal.ask_hidden("value: ") == "hunter2"
    assert person.is_echoing()
    assert person.terminal.ask("name: ") == "visible"
    seen = person.leave()
    assert "hunter2" not in seen
    assert "visible" in seen


def test_without_a_terminal_nobody_is_asked() -> None:
    """When standard input is a pipe, nobody is asked."""
    read_end, write_end = os.pipe()
    with (
        os.fdopen(read_end) as source,
        os.fdopen(write_end, "w") as screen,
        pytest.raises(UsageError, match="no terminal"),
    ):
        ScreenCustodians(Terminal(source, screen)).prepare()


def test_a_card_that_is_higher_than_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown in parts, each alone, so that no word scrolls away; questions wrap as well."""
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setenv("LINES", "24")
    person = Person()
    person.act(
        ("custodian 1 of 1: press Enter", ""),
        ("press Enter once this is copied", ""),
        ("press Enter once this is copied", ""),
        ("press Enter once every word", ""),
    )
    ScreenCustodians(person.terminal).hand_out(make_cards(SHARES[:1], threshold=1))
    seen = person.leave().replace("\r\n", "\n").split("\x1b[?1049h")[1:]
    screens = [re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", screen) for screen in seen]
    for screen in screens:
        assert screen.count("\n") < 24
        assert max(map(len, screen.splitlines())) <= 50
    assert len(screens) == 3
    assert read_words(screens[2]) == SHARES[0]


def test_custodians_at_a_screen() -> None:
    """Each card is shown alone and cleared away; words are asked for hidden, until enough people's are right."""
    person = Person()
    custodians = ScreenCustodians(person.terminal)
    custodians.prepare()
    enter = [
        line
        for number in (1, 2, 3)
        for line in ((f"custodian {number} of 3: press Enter", ""), ("press Enter once every word", ""))
    ]
    person.act(
        *enter,
        (NO_WORD_YET, "xyzzy"),
        ("word 1 is not in the list", split(bytes(32), 2, 3)[0]),
        (NO_WORD_YET, SHARES[2].upper()),
        (NO_WORD_YET, SHARES[2]),
        (NO_WORD_YET, SHARES[0]),
    )
    custodians.hand_out(make_cards(SHARES))
    assert custodians.read_back(CHECK) == [SHARES[2], SHARES[0]]
    seen = person.leave()
    for answer in (
        "Words of a custodian (1 of 2).",
        "not accepted: the words are a correct share, but not one of this attempt: an older card?",
        "33 of 33 words",
        "custodian 3: right",
        "Words of a custodian (2 of 2).",
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
