"""`pilot run`: start a program with secrets in its environment or in files."""

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from pilot.errors import UsageError
from pilot.options import Settings, complete_address, with_globals
from pilot.programs.hand_over import HandOver, list_references, parse_files
from pilot.programs.supervisor import PASSED, Supervisor, parse_reaction
from pilot.programs.variables import parse_variables
from pilot.programs.wakeups import Wakeups
from pilot.terminal.signals import signals_as_interrupt

if TYPE_CHECKING:
    from shardhold import Secret

app = typer.Typer(add_completion=False)

_ROLES = ("",)  # a program reads secrets as a workload
_SHORTEST_S, _LONGEST_S = 0.1, 24 * 3600.0


@app.command(context_settings={"allow_interspersed_args": False})
@with_globals
def run(
    settings: Settings,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The program and its arguments.")],
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=PATH#FIELD", help="Set this variable to a secret; may be repeated."),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="FILE:TARGET", help="Fill in a template's secrets; may be repeated."),
    ] = None,
    on_change: Annotated[
        str, typer.Option("--on-change", metavar="WHAT", help="ignore, restart, or a signal to send, such as HUP.")
    ] = "ignore",
    refresh: Annotated[
        float,
        typer.Option(
            "--refresh", min=_SHORTEST_S, max=_LONGEST_S, metavar="SECONDS", help="Look for changes so often."
        ),
    ] = 60.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            min=0,
            max=_LONGEST_S,
            metavar="SECONDS",
            help="How long a restart waits for its end.",
        ),
    ] = 10.0,
    allow_disk: Annotated[
        bool, typer.Option("--allow-disk", help="Let files with secrets be on something other than a tmpfs.")
    ] = False,
) -> None:
    """Run a program with secrets in its environment, or in files that are removed when it ends.

    Signals are passed on, and the exit code is the program's: pilot run --env DB_PASSWORD=team/app/db#password -- ./app
    """
    variables, files = parse_variables(env or ()), parse_files(template or ())
    reaction = parse_reaction(on_change)
    paths = sorted({reference.path for reference in list_references(variables, files)})
    if not variables and not files:
        raise UsageError("nothing to hand over, want --env or --template")
    wakeups = Wakeups((*PASSED, signal.SIGCHLD))
    with contextlib.ExitStack() as stack:
        stack.enter_context(signals_as_interrupt())
        following = stack.enter_context(contextlib.ExitStack())
        get_secrets = following.enter_context(_followed(settings, paths, refresh, wakeups.tell))
        if not files and reaction == "ignore":
            get_secrets = functools.partial(dict, get_secrets())
            following.close()
        stack.enter_context(wakeups)  # from here on signals are for the program, and interrupt no removal of files
        wakeups.tell()  # of changes that came before
        hand_over = stack.enter_context(HandOver(variables, files, get_secrets=get_secrets, may_be_on_disk=allow_disk))
        hand_over.refresh()
        supervisor = Supervisor(
            command,
            wakeups,
            get_environment=lambda: hand_over.environment,
            take_news=hand_over.try_refresh,
            reaction=reaction,
            grace=grace,
        )
        code = supervisor.run()
    raise typer.Exit(code)


@contextlib.contextmanager
def _followed(
    settings: Settings, paths: list[str], interval: float, tell: Callable[[], None]
) -> "Iterator[Callable[[], Mapping[str, Secret]]]":
    """Keep the secrets at *paths* fresh; yield what returns them by path. *tell* is called after each change."""
    from pilot.connection import open_identity
    from shardhold import Cached, Client

    address = complete_address(settings.address)
    with contextlib.closing(open_identity(settings, preferred=_ROLES)) as identity:
        client = Client(address, identity, timeout=settings.timeout)
        secrets: dict[str, Cached] = {}
        try:
            for path in paths:
                secrets[path] = Cached(
                    client, path, interval=interval, start_timeout=settings.timeout, on_change=lambda _: tell()
                )
            yield lambda: {path: one.current for path, one in secrets.items()}
        finally:
            for one in secrets.values():
                one.close(wait=False)
            client.close()  # ends the refreshes in progress
