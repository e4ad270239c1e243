"""`pilot backup identity`: made with a passphrase, opened with it, by pilot and by the stock program of age."""

import json
import re
import shutil
from pathlib import Path

import pyrage
import pytest

from common.keys import age
from common.keys.protected_file import protect
from pilot.custody.passphrase import draw_passphrase
from tests.kit.backups import make_stream
from tests.kit.transcript import Transcript, run_at_terminal, run_pilot, run_program_at_terminal

PASSPHRASE = "seven tired herons, 4 boats"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An identity file, as pilot makes it."""
    path = tmp_path_factory.mktemp("identity") / "identity.age"
    told = make(path, PASSPHRASE, PASSPHRASE)
    assert told.code == 0, told
    return path


def make(path: Path, first: str, second: str) -> Transcript:
    """Make an identity file, typing its passphrase twice."""
    script = [("new passphrase: ", first), ("once more: ", second)]
    return run_at_terminal("backup", "identity", "new", path, "-o", "json", script=script)


def open_file(path: Path, passphrase: str) -> Transcript:
    """Ask pilot whether the passphrase opens the file."""
    script = [(f"passphrase of {path}: ", passphrase)]
    return run_at_terminal("backup", "identity", "check", path, "-o", "json", script=script)


def make_backup(folder: Path, recipient: str) -> Path:
    """Make a backup for *recipient*."""
    path = folder / "b.age"
    with path.open("wb") as backup:
        age.encrypt([make_stream()], backup, [recipient])
    return path


def test_an_identity_file_opens_with_its_passphrase_alone(file: Path) -> None:
    """It is for its owner alone, holds no secret in clear, and says whom it opens backups for."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert b"AGE-SECRET-KEY" not in file.read_bytes()
    told = open_file(file, PASSPHRASE)
    assert told.code == 0
    assert re.fullmatch("age1[a-z0-9]{58}", json.loads(told.out)["recipient"])
    assert PASSPHRASE not in told.err
    told = open_file(file, PASSPHRASE + "!")
    assert (told.code, told.out) == (1, "")
    assert "does not open the identity file" in told.err


def test_a_backup_is_verified_with_a_protected_identity(file: Path, tmp_path: Path) -> None:
    """Pilot asks for the passphrase; without a terminal it says so."""
    backup = make_backup(tmp_path, json.loads(open_file(file, PASSPHRASE).out)["recipient"])
    command: list[str | Path] = ["backup", "verify", backup, "--identity", file]
    told = run_at_terminal(*command, script=[("passphrase of", PASSPHRASE)])
    assert told.code == 0
    assert "2 secrets" in told.out
    told = run_pilot(*command)
    assert (told.code, told.out) == (2, "")
    assert "there is no terminal to ask on" in told.err


@pytest.mark.needs("age")
def test_the_stock_program_opens_it(file: Path, tmp_path: Path) -> None:
    """`age -d -i` asks for the passphrase of the file, and then opens the backup without anything of ours."""
    backup = make_backup(tmp_path, json.loads(open_file(file, PASSPHRASE).out)["recipient"])
    program = shutil.which("age") or "age"
    out = tmp_path / "stream"
    told = run_program_at_terminal(
        program, "-d", "-i", file, "-o", out, backup, script=[("Enter passphrase", PASSPHRASE)]
    )
    assert told.code == 0, told
    assert out.read_bytes() == make_stream()


def test_a_drawn_passphrase_is_shown_once_and_typed_back(tmp_path: Path) -> None:
    """Eight words; whoever types others has no file."""
    path = tmp_path / "identity.age"
    told = run_at_terminal(
        "backup",
        "identity",
        "new",
        path,
        "--generate",
        script=[("press Enter", ""), ("as written down", "other words")],
    )
    assert (told.code, told.out) == (2, "")
    assert not path.exists()
    assert "the two differ" in told.err
    drawn = {draw_passphrase() for _ in range(50)}
    assert len(drawn) == 50
    assert {len(one.split()) for one in drawn} == {8}


@pytest.mark.parametrize(
    ("passphrase", "error"),
    [
        pytest.param("", "has 0 characters, want at least 16", id="empty"),
        pytest.param("k8#Lq2!vZx", "has 10 characters", id="short"),
        pytest.param("shardhold-prod-2026", "guesses find the passphrase", id="the program's name and a year"),
        pytest.param("aaaaaaaaaaaaaaaaaaaaaaaa", "guesses find the passphrase", id="one letter"),
        pytest.param("qwertyuiopasdfghjklzxcvbnm", "guesses find the passphrase", id="a keyboard"),
    ],
)
def test_weak_passphrases_are_refused(tmp_path: Path, passphrase: str, error: str) -> None:
    """Before anything is written, and without showing them."""
    path = tmp_path / "identity.age"
    told = run_at_terminal("backup", "identity", "new", path, script=[("new passphrase: ", passphrase)])
    assert (told.code, told.out) == (2, "")
    assert error in told.err
    assert not passphrase or passphrase not in told.err
    assert not path.exists()


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(PASSPHRASE.title(), id="another case"),
        pytest.param(PASSPHRASE.replace(" ", "  ", 1), id="another space"),
    ],
)
def test_two_that_differ_are_refused(tmp_path: Path, second: str) -> None:
    """Nobody knows which one was meant."""
    told = make(tmp_path / "identity.age", PASSPHRASE, second)
    assert told.code == 2
    assert "the two differ; nothing was written" in told.err
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(file: Path) -> None:
    """It may open backups that nothing else opens."""
    before = file.read_bytes()
    told = run_at_terminal("backup", "identity", "new", file)
    assert told.code == 2
    assert "is there already" in told.err
    assert file.read_bytes() == before


def test_no_terminal_no_identity(tmp_path: Path) -> None:
    """A passphrase comes from no pipe, which a script would feed."""
    told = run_pilot("backup", "identity", "new", tmp_path / "identity.age", stdin=f"{PASSPHRASE}\n" * 2)
    assert told.code == 2
    assert "there is no terminal to ask on" in told.err


def test_an_absurd_cost_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    """It would take gigabytes, and the file may come from anybody."""
    path = tmp_path / "identity.age"
    path.write_bytes(protect(b"x", b"p", work=4).replace(b" 4\n", b" 40\n", 1))
    told = run_pilot("backup", "identity", "check", path)
    assert told.code == 2
    assert "asks for 2^40 rounds of scrypt" in told.err


def test_an_identity_without_a_passphrase_is_checked_too(tmp_path: Path) -> None:
    """As age-keygen makes it."""
    identity = pyrage.x25519.Identity.generate()
    (tmp_path / "identity.txt").write_text(f"{identity}\n")
    told = run_pilot("backup", "identity", "check", tmp_path / "identity.txt", "-o", "json")
    assert json.loads(told.out)["recipient"] == str(identity.to_public())
