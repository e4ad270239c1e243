"""The share card: what one custodian keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from common.errors import WordsError
from common.keys.words import WORDS
from pilot.terminal.output import group_hex
from pilot.terminal.wrapping import wrap

_TITLE = "SHARDHOLD RECOVERY SHARE"
_WORDS_FOLLOW = "recovery words"
_PER_LINE = 4
_LONGEST_WORD = 10  # letters, with some to spare
_WIDTH = 120  # columns at most
_NAMES = 18  # columns of what stands before a fact
GENESIS_SIZE = 32  # bytes
_WHAT_TO_DO = """\
what to do with it
- Copy it to paper or steel, compare every word, and keep it where only you can get it. Leave no file or picture of it.
- Your words alone open nothing: {threshold} of the {count} shares do. Tell nobody yours, whoever asks.
- When the cluster cannot come back by itself, its operators ask you to enter the words with 'pilot unseal'. Compare \
the genesis fingerprint that it shows with this card first; if they differ, enter nothing and raise the alarm.
- Destroy it only when you are told that newer shares replace it, or that this attempt to initialise was given up."""


@dataclass(frozen=True, slots=True)
class Card:
    """One custodian's recovery share and what belongs with it."""

    number: int  # 1 to count
    count: int
    threshold: int
    words: str = field(repr=False)  # canonical form
    cluster_id: bytes
    genesis: bytes  # 32 bytes
    attempt: int
    made_on: date

    def format(self, columns: int | None = None) -> str:
        """Return the card as text, as it is shown or written to a file; in at most *columns* if given."""
        return (
            "\n\n".join((self._format_facts(columns), self._format_words(columns), self._format_advice(columns))) + "\n"
        )

    def format_pages(self, columns: int | None, lines: int | None) -> list[str]:
        """Return the card for a screen of *columns* and *lines*: whole where that fits, else with the words last."""
        parts = (self._format_facts(columns), self._format_advice(columns), self._format_words(columns))
        pages = [self.format(columns)]
        for split in ([parts[0] + "\n\n" + parts[1], parts[2]], parts):
            if lines is not None and max(page.count("\n") for page in pages) > lines:
                pages = [f"{page}\n" for page in split]
        return pages

    def _format_facts(self, columns: int | None) -> str:
        room = _fit(columns) - _NAMES - 2
        genesis, cluster = group_hex(self.genesis), self.cluster_id.hex()
        per_line = next((number for number in (40, 20) if room >= number - 1), 10)  # characters of the genesis
        facts = {
            "custodian": f"{self.number} of {self.count}",
            "recovery threshold": f"{self.threshold} (any {self.threshold} of the {self.count} shares)",
            "genesis": "\n".join(genesis[at : at + per_line].rstrip() for at in range(0, len(genesis), per_line)),
            "cluster": cluster if room >= len(cluster) else f"{cluster[:16]}\n{cluster[16:]}",
            "attempt": str(self.attempt),
            "made on": self.made_on.isoformat(),
        }
        lines = [_TITLE, ""]
        for name, value in facts.items():
            first, *others = wrap(value, room, folds=True)
            lines += [f"{name:<{_NAMES}}  {first}", *(" " * (_NAMES + 2) + line for line in others)]
        return "\n".join(lines)

    def _format_words(self, columns: int | None) -> str:
        return "\n".join((_WORDS_FOLLOW, *_number(self.words.split(), columns)))

    def _format_advice(self, columns: int | None) -> str:
        return "\n".join(wrap(_WHAT_TO_DO.format(threshold=self.threshold, count=self.count), _fit(columns)))


def is_card(text: str) -> bool:
    """Return whether *text* begins like a card."""
    return text.lstrip().startswith(_TITLE)


def read_genesis(card: str) -> bytes:
    """Find the genesis fingerprint in the text of a card, 32 bytes.

    Raises:
        WordsError: The card has none.
    """
    groups: list[str] = []
    for line in card.splitlines():
        name, *parts = line.split() or [""]
        if name == "genesis":
            groups = parts
        elif groups and line.startswith(" "):
            groups += [name, *parts]
        elif groups:
            break
    try:
        genesis = bytes.fromhex("".join(groups))
    except ValueError:
        genesis = b""
    if len(genesis) != GENESIS_SIZE:
        raise WordsError("the card has no genesis fingerprint")
    return genesis


def read_words(card: str) -> str:
    """Find the words in the text of a card; they are not checked.

    Raises:
        WordsError: It is not a card, or does not have 33 words.
    """
    lines = iter(card.splitlines())
    if _WORDS_FOLLOW not in lines:  # then continues after that line
        raise WordsError("the file is not a share card")
    words: list[str] = []
    for line in lines:
        if not line.strip():
            break
        words += [token for token in line.split() if not token.isdigit()]
    if len(words) != WORDS:
        raise WordsError(f"the card has {len(words)} words, want {WORDS}")
    return " ".join(words)


def _fit(columns: int | None) -> int:
    return _WIDTH if columns is None else min(columns, _WIDTH)


def _number(words: Sequence[str], columns: int | None) -> list[str]:
    """Return numbered words side by side, to be read line by line."""
    cells = [f"{number:>2} {word:<{_LONGEST_WORD}}" for number, word in enumerate(words, start=1)]
    per_line = max(min(_PER_LINE, (_fit(columns) + 2) // (len(cells[0]) + 2)), 1)
    return ["  ".join(cells[start : start + per_line]).rstrip() for start in range(0, len(cells), per_line)]
