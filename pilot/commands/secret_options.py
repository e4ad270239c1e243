"""Arguments and options that several commands of `pilot secret` have, and the connection that they use."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.completion import complete_paths
from pilot.errors import PilotError, UsageError
from pilot.options import LARGEST_NUMBER, Settings
from pilot.plain import clean
from pilot.terminal.output import Output, print_facts, print_json

if TYPE_CHECKING:
    from pilot.connection import Connection
    from pilot.terminal.terminal import Terminal

# Policies decide; at first only superusers have one.
_ROLES = ("", "superuser")

PathArgument = Annotated[
    str,
    typer.Argument(metavar="PATH", help="Path of the secret, such as team/app/db.", autocompletion=complete_paths),
]
ValuesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="FIELD | FIELD=@FILE | FIELD=- | @FILE | -",
        help="Fields: asked for, hidden; from files; from standard input. @FILE and - alone are the field 'value'.",
    ),
]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Fields from a JSON object of strings; -: standard input."),
]
EnvFileOption = Annotated[
    str | None,
    typer.Option(
        "--env-file",
        metavar="FILE",
        help="Fields from lines of KEY=VALUE, without quotes or escapes, as docker reads them; -: standard input.",
    ),
]
StripNewlineOption = Annotated[
    bool, typer.Option("--strip-newline", help="Take a newline off the end of values from files and standard input.")
]
KeepNewlineOption = Annotated[
    bool, typer.Option("--keep-newline", help="Keep a newline at the end of standard input, without a warning.")
]
AllowEmptyOption = Annotated[bool, typer.Option("--allow-empty", help="Write empty values without asking.")]
ExpectedVersion = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=LARGEST_NUMBER,
        metavar="N",
        help="Only if this is the current version; for put, 0: only if there is none.",
    ),
]
ExpectedIncarnation = Annotated[
    str, typer.Option(metavar="HEX", help="Only if the secret has this incarnation; goes with --expected-version.")
]
VersionsOption = Annotated[
    list[int] | None,
    typer.Option("--version", min=1, max=LARGEST_NUMBER, metavar="N", help="Only this version; may be repeated."),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Ask nothing; for automation.")]


def connect(settings: Settings) -> "Connection":
    """Connect as whoever policies may know."""
    from pilot.connection import Connection

    return Connection(settings, preferred=_ROLES)


def parse_incarnation(text: str) -> bytes:
    """Return the incarnation that an option names, 16 bytes, or none.

    Raises:
        UsageError: It is not hex, or has another size.
    """
    try:
        incarnation = bytes.fromhex(text)
    except ValueError as exc:
        raise UsageError("--expected-incarnation is not hex") from exc
    if len(incarnation) not in (0, 16):
        raise UsageError(f"--expected-incarnation has {len(incarnation)} bytes, want 16")
    return incarnation


def ask_for_path(terminal: "Terminal", path: str, *, warning: str, refusal: str) -> None:
    """Make a person type the path of what is about to go.

    Raises:
        PilotError: *refusal*: they typed something else.
        UsageError: There is no terminal to ask on.
    """
    terminal.check("--yes confirms without a terminal, for automation")
    terminal.say(clean(warning))
    if terminal.ask("type its path: ").strip() != path:
        raise PilotError(refusal)


def print_outcome(settings: Settings, document: dict[str, Any]) -> None:
    """Print what a change made."""
    if settings.output is Output.JSON:
        print_json(document)
        return
    shown = {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in document.items()
    }
    print_facts(shown)
