"""How recovery shares get to their custodians, and how a threshold of them is read back as proof.

`ScreenCustodians` shows one card at a time to one person; `FileCustodians` writes files, for automation.
"""

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from common.errors import WordsError
from common.keys.recovery_key import ShareHash
from common.keys.words import RecoveryShare, encode_share, read_share
from pilot.custody.card import Card, read_words
from pilot.custody.words_entry import ask_words
from pilot.errors import PilotError, UsageError
from pilot.terminal.terminal import Terminal

_LINES_BELOW = 4  # a card: a blank one, a question of up to two, and the cursor's


class ShareCheck:
    """Tells whether typed words are a share of this attempt, by the hashes that the nexus has."""

    def __init__(self, hashes: Sequence[ShareHash], *, threshold: int) -> None:
        self._hashes = hashes
        self.threshold = threshold

    def check(self, typed: str) -> RecoveryShare:
        """Return the share.

        Raises:
            WordsError: The words are mistyped, or are a share of something else.
        """
        share = read_share(typed)
        if share.number > len(self._hashes) or not self._hashes[share.number - 1].matches(encode_share(typed)):
            raise WordsError("the words are a correct share, but not one of this attempt: an older card?")
        return share


class Custodians(Protocol):
    """Where cards go. It remembers what was handed out, to say which cards to destroy."""

    def prepare(self) -> None:
        """Check that cards can be handed out, before anything is created."""
        ...

    def hand_out(self, cards: Sequence[Card]) -> None: ...

    def read_back(self, check: ShareCheck) -> list[str]:
        """Return at least a threshold of shares, in canonical form, read from where custodians keep them."""
        ...

    def discard(self) -> list[str]:
        """Say what to do with the cards handed out so far, now that they open nothing; one line for each hint."""
        ...


class ScreenCustodians:
    """Custodians in front of one terminal, one after the other."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._shown: list[int] = []
        self._attempt = ""

    def prepare(self) -> None:
        """Check that there is a terminal."""
        self._terminal.check("share cards are shown to custodians; for automation write them with --shares-dir DIR")

    def hand_out(self, cards: Sequence[Card]) -> None:
        """Show each card alone, on a cleared screen."""
        self._terminal.say(f"{len(cards)} custodians now come to this screen, one at a time and alone.")
        for card in cards:
            self._terminal.ask(
                f"custodian {card.number} of {len(cards)}: press Enter when nobody else can see the screen "
            )
            self._attempt = f"attempt {card.attempt}, genesis {card.genesis[:4].hex(' ', 2)} …"
            self._shown.append(card.number)
            self._show(card)

    def _show(self, card: Card) -> None:
        room = None if self._terminal.lines is None else self._terminal.lines - _LINES_BELOW
        *others, last = card.format_pages(self._terminal.columns, room)
        for page in others:
            with self._terminal.alone(page):
                self._terminal.ask("press Enter once this is copied; the rest of the card follows ")
        with self._terminal.alone(last):
            self._terminal.ask("press Enter once every word is written down and compared; this is not shown again ")

    def read_back(self, check: ShareCheck) -> list[str]:
        """Ask a threshold of custodians for their words, hidden, each until they are of this attempt."""
        self._terminal.say(
            f"Proof: {check.threshold} custodians now enter the words from their cards. Nothing is shown."
        )
        shares: dict[int, str] = {}
        while len(shares) < check.threshold:
            typed = ask_words(self._terminal, f"Words of a custodian ({len(shares) + 1} of {check.threshold}).")
            try:
                share = check.check(typed.words)
            except WordsError as exc:
                self._terminal.say(f"not accepted: {exc}")
                continue
            if share.number in shares:
                self._terminal.say(f"not accepted: custodian {share.number} was already here")
                continue
            shares[share.number] = share.words
            self._terminal.say(f"custodian {share.number}: right")
        return list(shares.values())

    def discard(self) -> list[str]:
        """Name the cards that were shown."""
        if not self._shown:
            return ["no share card was shown, so there is none to destroy"]
        numbers = ", ".join(map(str, self._shown))
        return [f"destroy the cards of custodians {numbers} ({self._attempt}): they open nothing"]


class FileCustodians:
    """Custodians as files: `custodian-N.txt`, mode 0600, in one directory.

    With *set_aside*, whatever is already there is moved into a new folder `earlier-N` to make room, and never removed:
    it may belong to another cluster, or to an attempt that was killed. It is put back when the new shares are void.
    """

    def __init__(self, directory: Path, *, set_aside: bool = False) -> None:
        self._directory = directory
        self._sets_aside = set_aside
        self._made_directory = False
        self._written: list[Path] = []
        self._aside: Path | None = None

    def prepare(self) -> None:
        """Check that the directory is empty or may be emptied, or create it, mode 0700.

        Raises:
            UsageError: It holds something, is not a directory, or cannot be created.
        """
        try:
            if self._directory.is_dir():
                if not self._sets_aside and any(self._directory.iterdir()):
                    raise UsageError(f"{self._directory} is not empty", "name a new or empty directory for the shares")
                return
            self._directory.mkdir(mode=0o700)
            self._made_directory = True
        except OSError as exc:
            raise UsageError(f"{self._directory}: {exc.strerror}") from exc

    def _set_aside(self) -> None:
        found = [entry for entry in self._directory.iterdir() if not entry.name.startswith("earlier-")]
        if not found:
            return
        number = next(n for n in itertools.count(1) if not (self._directory / f"earlier-{n}").exists())
        folder = self._directory / f"earlier-{number}"
        folder.mkdir(mode=0o700)
        self._aside = folder
        for entry in found:
            entry.rename(folder / entry.name)

    def _put_back(self) -> None:
        if self._aside is not None:
            for entry in self._aside.iterdir():
                if not os.path.lexists(self._directory / entry.name):  # else a file that came meanwhile
                    entry.rename(self._directory / entry.name)
            self._aside.rmdir()

    def hand_out(self, cards: Sequence[Card]) -> None:
        """Write one new file for each custodian."""
        if self._sets_aside:
            try:
                self._set_aside()
            except OSError as exc:
                raise PilotError(f"{self._directory}: {exc.strerror}") from exc
        for card in cards:
            path = self._directory / f"custodian-{card.number}.txt"
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                self._written.append(path)
                with os.fdopen(fd, "w", encoding="ascii") as file:
                    os.fchmod(fd, 0o600)  # regardless of the umask
                    file.write(card.format())
                    file.flush()
                    os.fsync(fd)
            except OSError as exc:
                raise PilotError(f"{path}: {exc.strerror}") from exc
        _sync_directory(self._directory)

    def read_back(self, check: ShareCheck) -> list[str]:
        """Read all files back and check each."""
        shares = []
        for path in self._written:
            try:
                shares.append(check.check(read_words(path.read_text(encoding="ascii"))).words)
            except OSError as exc:
                raise PilotError(f"{path}: {exc.strerror}") from exc
            except (UnicodeDecodeError, WordsError) as exc:
                raise PilotError(f"{path}: is not the card that was written: {exc}") from exc
        return shares

    def discard(self) -> list[str]:
        """Remove the files that were written, and the directory if it was created here; put back what was set aside."""
        kept = []
        for path in self._written:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                kept.append(path)
        with contextlib.suppress(OSError):
            if self._made_directory and not kept:
                self._directory.rmdir()
            if not kept:
                self._put_back()
        if kept:
            return [f"destroy {', '.join(map(str, kept))}: they open nothing"]
        return ["the share files opened nothing and were removed"] if self._written else []


def _sync_directory(directory: Path) -> None:
    """Make the names of new files survive a power cut: the cluster is about to depend on them."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise PilotError(f"{directory}: {exc.strerror}") from exc
