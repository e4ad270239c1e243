"""The share card: what one custodian keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from common.errors import WordsError
from common.keys.words import WORDS
from pilot.terminal.output import group_hex

_TITLE = "SHARDHOLD RECOVERY SHARE"
_WORDS_FOLLOW = "recovery words"
_PER_LINE = 4
GENESIS_SIZE = 32  # bytes
_WHAT_TO_DO = """\
what to do with it
- Copy it to paper or steel, compare every word, and keep it where only you can get it. Leave no file or picture of it.
- Your words alone open nothing: {threshold} of the {count} shares do. Tell nobody yours, whoever asks.
- When the cluster cannot come back by itself, its operators ask you to enter the words with 'pilot unseal'. Compare the
  genesis fingerprint that it shows with this card first; if they differ, enter nothing and raise the alarm.
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

    def format(self) -> str:
        """Return the card as text, as it is shown or written to a file."""
        facts = {
            "custodian": f"{self.number} of {self.count}",
            "recovery threshold": f"{self.threshold} (any {self.threshold} of the {self.count} shares)",
            "genesis": group_hex(self.genesis[:16]) + "\n" + " " * 20 + group_hex(self.genesis[16:]),
            "cluster": self.cluster_id.hex(),
            "attempt": str(self.attempt),
            "made on": self.made_on.isoformat(),
        }
        lines = [_TITLE, ""]
        lines += [f"{name:<18}  {value}" for name, value in facts.items()]
        lines += ["", _WORDS_FOLLOW, *_number(self.words.split()), ""]
        lines.append(_WHAT_TO_DO.format(threshold=self.threshold, count=self.count))
        return "\n".join(lines) + "\n"


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


def _number(words: Sequence[str]) -> list[str]:
    """Return numbered words in columns, to be read line by line."""
    cells = [f"{number:>2} {word:<10}" for number, word in enumerate(words, start=1)]
    return ["  ".join(cells[start : start + _PER_LINE]).rstrip() for start in range(0, len(cells), _PER_LINE)]
