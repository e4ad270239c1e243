"""Questions that a person answers by typing, before something that cannot be undone."""

from collections.abc import Sequence

from pilot.errors import PilotError
from pilot.terminal.terminal import Terminal


def confirm(terminal: Terminal, warning: str, *, question: str, answers: Sequence[str], refusal: str) -> None:
    """Show *warning*, ask *question*, and return if the answer is one of *answers*, ignoring case and outer blanks.

    Raises:
        PilotError: *refusal*: the answer is any other.
        UsageError: There is no terminal to ask on.
    """
    terminal.check("--yes confirms without a terminal, for automation")
    terminal.say(warning)
    if terminal.ask(f"{question}: ").strip().lower() not in answers:
        raise PilotError(refusal)
