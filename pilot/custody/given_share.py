"""A recovery share that is given as a file or on standard input: a share card, or its words alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from common.errors import WordsError
from common.keys.words import RecoveryShare, read_share
from pilot.custody.card import is_card, read_genesis, read_words
from pilot.errors import UsageError

_MAX_BYTES = 64 * 1024  # a card has some 2 KiB


@dataclass(frozen=True, slots=True)
class GivenShare:
    """Checked words, and the genesis fingerprint on the card that they came from."""

    share: RecoveryShare = field(repr=False)
    genesis: bytes | None  # 32 bytes; None: words without a card


def read_given_share(arguments: Sequence[str], stdin: BinaryIO) -> GivenShare | None:
    """Read the share that `-` or `@FILE` on the command line names; None without either: then a person is asked.

    Raises:
        UsageError: The argument is anything else, which is not repeated since it may be words; or what it names cannot
            be read or is not a share.
    """
    if not arguments:
        return None
    origin = arguments[0]
    if len(arguments) > 1 or (origin != "-" and (not origin.startswith("@") or len(origin) == 1)):
        raise UsageError(
            "words on the command line would stay in the shell's history and in the list of processes",
            "use @FILE or - (standard input), or give nothing and be asked",
        )
    name = "standard input" if origin == "-" else origin[1:]
    try:
        text = _read(origin, stdin).decode("ascii")
        if is_card(text):
            return GivenShare(read_share(read_words(text)), read_genesis(text))
        return GivenShare(read_share(text), None)
    except OSError as exc:
        raise UsageError(f"{name}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise UsageError(f"{name}: is neither a share card nor words") from None  # the error holds what was read
    except WordsError as exc:
        raise UsageError(f"{name}: {exc}") from exc


def _read(origin: str, stdin: BinaryIO) -> bytes:
    if origin == "-":
        return stdin.read(_MAX_BYTES)
    with Path(origin[1:]).open("rb") as file:
        return file.read(_MAX_BYTES)
