"""A passphrase: drawn, or chosen by a person and held to what a guesser needs.

1. Length alone is no measure, and neither is the estimate of a meter, which knows no list of a later day: one that a
   person chose needs both.
2. Eight words drawn from 1024 have 80 bits, whatever they look like.
"""

import secrets
from typing import Final

from pilot.errors import UsageError
from pilot.terminal.terminal import Terminal

WORDS: Final = 8  # rule 2
SHORTEST: Final = 16  # characters
FEWEST_GUESSES: Final = 14.0  # as a power of ten

_LONGEST_RATED: Final = 100  # characters: the meter's time grows with their square
_DIFFER: Final = "the two differ; nothing was written"
_KNOWN_HERE: Final = ("shardhold", "backup", "identity", "recovery", "nexus", "keeper", "pilot", "escrow")


def draw_passphrase() -> str:
    """Return eight words drawn at random."""
    from shamir_mnemonic.wordlist import WORDLIST

    return " ".join(secrets.choice(WORDLIST) for _ in range(WORDS))


def check_strength(passphrase: str) -> None:
    """Check that a passphrase which a person chose is hard to guess (rule 1).

    Raises:
        UsageError: It is not; the message tells nothing of it but its length.
    """
    from zxcvbn_rs_py import zxcvbn

    hint = f"--generate draws one of {WORDS} words"
    if len(passphrase) < SHORTEST:
        raise UsageError(f"the passphrase has {len(passphrase)} characters, want at least {SHORTEST}", hint)
    rated = zxcvbn(passphrase[:_LONGEST_RATED], list(_KNOWN_HERE))
    if rated.guesses_log10 < FEWEST_GUESSES:
        found = f"10^{rated.guesses_log10:.0f} guesses find the passphrase"
        raise UsageError(f"{found}, want one that takes 10^{FEWEST_GUESSES:.0f}", hint)


def choose_passphrase(terminal: Terminal) -> str:
    """Ask for a new passphrase, twice; raises as `check_strength`, or when the two differ."""
    passphrase = terminal.ask_hidden("new passphrase: ")
    check_strength(passphrase)
    if terminal.ask_hidden("once more: ") != passphrase:
        raise UsageError(_DIFFER)
    return passphrase


def hand_out_passphrase(terminal: Terminal) -> str:
    """Draw a passphrase, show it alone on a cleared screen, and ask for it, so that it was written down."""
    passphrase = draw_passphrase()
    with terminal.alone(f"The passphrase, to be written down and kept apart from the file:\n\n    {passphrase}\n"):
        terminal.ask("press Enter once every word is written down; this is not shown again ")
    typed = terminal.ask_hidden("the passphrase, as written down: ")
    if typed.split() != passphrase.split():  # the words count; the file is protected by the form that was shown
        raise UsageError(_DIFFER)
    return passphrase
