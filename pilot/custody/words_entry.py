"""Entering the words of a recovery share at a hidden prompt, checked while they are typed.

1. Nothing typed is shown, only the number of good words so far.
2. A word ends with a space or Enter; whole words or their first four letters or more are accepted, in any case.
3. A word that is not in the list is forgotten and reported at once by its position. Its place stays open, and the other
   words of the line keep theirs. After the line, or after the last word, only the open places are asked for.
4. Backspace takes back a letter, or the previous word when there is no letter; Ctrl-U takes back everything.
5. Keys that are not letters, such as the numbers on a card, are ignored.
6. When no place is open any more, the checksum is checked. If it does not fit, the mistake may be anywhere: all words
   are typed again.
"""

from common.errors import WordsError
from common.keys.words import WORDS, RecoveryShare, is_word, read_share
from pilot.terminal.terminal import Terminal

_BACKSPACE = "\x7f\b"
_ERASE_ALL = "\x15"  # Ctrl-U
_ESCAPE = "\x1b"


class WordsEntry:
    """What was typed so far. No I/O."""

    def __init__(self) -> None:
        self._places: list[str | None] = []  # None: open
        self._before: list[list[str | None]] = []  # the places before each word that was typed
        self._asks = False  # for the open places
        self._letters = ""
        self._escape = ""  # of a key that sends several characters, such as an arrow
        self.share: RecoveryShare | None = None  # once all is typed and right

    @property
    def count(self) -> int:
        """The number of good words so far."""
        return len(self._places) - self._places.count(None)

    @property
    def prompt(self) -> str:
        """What to show while the next word is typed."""
        place = f", now word {self._find_place() + 1}" if self._asks else ""
        return f"{self.count} of {WORDS} words{place}: "

    def press(self, key: str) -> str:
        """Take one key; return what to tell the person, which never contains a word."""
        if self._escape or key == _ESCAPE:
            self._pass_over(key)
        elif key.isspace():
            return self._end_word(ends_line=key in "\r\n")
        elif key in _BACKSPACE:
            self._take_back()
        elif key == _ERASE_ALL:
            self._begin_again()
        elif key.isascii() and key.isalpha():
            self._letters += key
        return ""

    def _find_place(self) -> int:
        """Return where the next word goes."""
        return self._places.index(None) if self._asks else len(self._places)

    def _end_word(self, *, ends_line: bool) -> str:
        word, self._letters = self._letters, ""
        place = self._find_place()
        is_wrong = bool(word) and not is_word(word)
        if word:
            self._before.append(self._places.copy())
            self._places[place : place + 1] = [None if is_wrong else word]
        is_open = None in self._places
        self._asks = is_open and (self._asks or ends_line or len(self._places) == WORDS)
        if is_wrong:
            return self._complain(place)
        return "" if is_open or self.count < WORDS else self._finish()

    def _complain(self, place: int) -> str:
        following = self._find_place()
        what = f"word {place + 1} is not in the list"
        if following == place:
            return f"{what}: type it again"
        return f"{what}: go on with word {following + 1}, and it is asked for after this line"

    def _finish(self) -> str:
        try:
            self.share = read_share(" ".join(word for word in self._places if word))
        except WordsError as exc:
            self._begin_again()
            return f"{exc}: begin again with word 1"
        return ""

    def _take_back(self) -> None:
        if self._letters:
            self._letters = self._letters[:-1]
        elif self._before:
            self._places = self._before.pop()
            self._asks = self._asks and None in self._places

    def _begin_again(self) -> None:
        self._places.clear()
        self._before.clear()
        self._asks = False
        self._letters = ""

    def _pass_over(self, key: str) -> None:
        starts = self._escape == _ESCAPE and key in "[O"
        self._escape = self._escape + key if key == _ESCAPE or starts or not (key.isalpha() or key == "~") else ""


def ask_words(terminal: Terminal, prompt: str) -> RecoveryShare:
    """Ask for the words of one share, hidden, until they are those of a share.

    Raises:
        EOFError: The input ended.
    """
    entry = WordsEntry()
    with terminal.hidden_keys() as read:
        terminal.say(f"{prompt} They are not shown, and each is checked when you press the space bar or Enter.")
        try:
            shown = entry.prompt
            terminal.show_on_line(shown)
            while entry.share is None:
                complaint = entry.press(read())
                if complaint:
                    terminal.show_on_line("")
                    terminal.say(complaint)
                if complaint or entry.prompt != shown:
                    shown = entry.prompt
                    terminal.show_on_line(shown)
        finally:
            terminal.say("")
    return entry.share
