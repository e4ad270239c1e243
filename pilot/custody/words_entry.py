"""Entering the words of a recovery share at a hidden prompt, checked while they are typed.

1. Nothing typed is shown, only the number of good words so far.
2. A word ends with a space or Enter; whole words or their first four letters or more are accepted, in any case.
3. A word that is not in the list is forgotten and reported at once by its position; only that word is typed again.
4. Backspace takes back a letter, or the previous word when there is no letter; Ctrl-U takes back everything.
5. Keys that are not letters, such as the numbers on a card, are ignored.
6. After the last word the checksum is checked. If it does not fit, the mistake may be anywhere: all words are typed
   again.
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
        self._words: list[str] = []
        self._letters = ""
        self._escape = ""  # of a key that sends several characters, such as an arrow
        self.share: RecoveryShare | None = None  # once all is typed and right

    @property
    def count(self) -> int:
        """The number of good words so far."""
        return len(self._words)

    def press(self, key: str) -> str:
        """Take one key; return what to tell the person, which never contains a word."""
        if self._escape or key == _ESCAPE:
            self._pass_over(key)
        elif key.isspace():
            return self._end_word()
        elif key in _BACKSPACE:
            if self._letters:
                self._letters = self._letters[:-1]
            elif self._words:
                self._words.pop()
        elif key == _ERASE_ALL:
            self._begin_again()
        elif key.isascii() and key.isalpha():
            self._letters += key
        return ""

    def _end_word(self) -> str:
        word, self._letters = self._letters, ""
        if not word:
            return ""
        if not is_word(word):
            return f"word {self.count + 1} is not in the list: type it again"
        self._words.append(word)
        if self.count < WORDS:
            return ""
        try:
            self.share = read_share(" ".join(self._words))
        except WordsError as exc:
            self._begin_again()
            return f"{exc}: begin again with word 1"
        return ""

    def _begin_again(self) -> None:
        self._words.clear()
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
    terminal.say(f"{prompt} They are not shown, and each is checked when you press the space bar or Enter.")
    with terminal.hidden_keys() as read:
        try:
            terminal.show_on_line(f"0 of {WORDS} words: ")
            while entry.share is None:
                before = entry.count
                complaint = entry.press(read())
                if complaint:
                    terminal.show_on_line(f"{complaint}\n")
                if complaint or entry.count != before:
                    terminal.show_on_line(f"{entry.count} of {WORDS} words: ")
        finally:
            terminal.say("")
    return entry.share
