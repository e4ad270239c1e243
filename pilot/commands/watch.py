"""`pilot watch`: the nexus and its keepers on one screen that lives."""

import itertools
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pilot.commands.status import ANY_ROLE
from pilot.options import Settings, with_globals
from pilot.plain import escape_json
from pilot.terminal.output import Output
from pilot.terminal.signals import signals_as_interrupt

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pilot.commands.watching import Sight
    from shardhold.v1.cluster_pb2 import GetStatusResponse

app = typer.Typer(add_completion=False)

_SHORTEST_S: Final = 0.2
_LONGEST_S: Final = 3600.0
_PLAIN_WIDTH: Final = 100  # columns where there is no terminal
_LONGEST_LOOK_S: Final = 5.0


@app.command()
@with_globals
def watch(
    settings: Settings,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            min=_SHORTEST_S,
            max=_LONGEST_S,
            metavar="SECONDS",
            help="From one look to the next; each is a line in the audit.",
        ),
    ] = 1.0,
    count: Annotated[
        int | None, typer.Option("--count", min=1, metavar="LOOKS", help="With -o json: end after so many looks.")
    ] = None,
) -> None:
    """Watch the nexus and its keepers on one screen, until q or Ctrl-C.

    Where there is no terminal, it shows one screen as plain text and ends. With -o json it goes on everywhere, with a
    line for each look, also while the nexus does not answer.
    """
    from pilot.connection import Connection
    from shardhold.v1.cluster_pb2 import GetStatusRequest

    stopping = threading.Event()
    # The thread ends last: when the connection is closed, the call that it waits for is cancelled.
    with (
        signals_as_interrupt(),
        ThreadPoolExecutor(1, "watch") as executor,
        Connection(settings, preferred=ANY_ROLE) as connection,
    ):

        def fetch() -> "GetStatusResponse":
            limit = min(settings.timeout, _LONGEST_LOOK_S)
            response: GetStatusResponse = connection.call(
                connection.cluster.GetStatus, GetStatusRequest(), timeout=limit
            )
            return response

        try:
            if settings.output is Output.JSON:
                _print_lines(fetch, interval, stopping, count)
            else:
                _show(fetch, settings.address, interval, stopping, executor)
        finally:
            stopping.set()


def _print_lines(
    fetch: "Callable[[], GetStatusResponse]", interval: float, stopping: threading.Event, count: int | None
) -> None:
    from pilot.commands.watching import Watcher

    watcher = Watcher(fetch)
    with suppress(KeyboardInterrupt):
        for number in itertools.count(1):
            sight = watcher.look()
            document = sight.to_document(time.monotonic())
            print(escape_json(json.dumps(document, ensure_ascii=False)), flush=True)
            if number == count:
                return
            stopping.wait(sight.find_interval(interval))


def _show(
    fetch: "Callable[[], GetStatusResponse]",
    address: str,
    interval: float,
    stopping: threading.Event,
    executor: Executor,
) -> None:
    from pilot.commands.vitals import vitals_document
    from pilot.commands.watching import Sight, Watcher
    from pilot.terminal.live import can_be_live, open_console, show_live

    console = open_console()
    if not can_be_live(console):
        _print_plain(Sight(vitals_document(fetch()), time.monotonic()), address)
        return
    watcher = Watcher(fetch)
    looking = executor.submit(watcher.look_on, interval, stopping)

    def find_sight() -> Sight:
        if looking.done():
            looking.result()  # raises what ended it
        return watcher.sight

    show_live(lambda width: _render(watcher.sight, address, width), find_sight, console)


def _print_plain(sight: "Sight", address: str) -> None:
    from rich.console import Console

    console = Console(width=_PLAIN_WIDTH, highlight=False)
    with console.capture() as captured:
        console.print(_render(sight, address, _PLAIN_WIDTH))
    for line in captured.get().splitlines():
        print(line.rstrip())


def _render(sight: "Sight", address: str, width: int) -> "RenderableType":
    from pilot.commands.watch_screen import render_screen

    return render_screen(sight, address=address, width=width, now=time.monotonic(), at=datetime.now(UTC))
