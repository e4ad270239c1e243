"""The command line: global options, and commands that are imported only when they run."""

import importlib
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pilot import __version__
from pilot.errors import DONE, INTERRUPTED, USAGE, PilotError
from pilot.help import add_help
from pilot.options import (
    DEFAULT_ADDRESS,
    DEFAULT_TIMEOUT_S,
    FirstAddressOption,
    OutputOption,
    RoleOption,
    Settings,
    SvidDirOption,
    TimeoutOption,
    UnnamedOption,
)
from pilot.terminal.output import Output
from pilot.terminal.report import wants_json
from pilot.usage import BaseUsageError, describe_usage

# Command → module and name of its typer.Typer.
_COMMANDS = {
    "status": "pilot.commands.status:status_app",
    "watch": "pilot.commands.watch:app",
    "whoami": "pilot.commands.status:whoami_app",
    "init": "pilot.commands.init:app",
    "seal": "pilot.commands.seal:app",
    "unseal": "pilot.commands.unseal:app",
    "accept-older-store": "pilot.commands.accept_older_store:app",
    "secret": "pilot.commands.secret:app",
    "run": "pilot.commands.run:app",
    "policy": "pilot.commands.policy:app",
    "root": "pilot.commands.root:app",
    "keeper": "pilot.commands.keeper:app",
    "backup": "pilot.commands.backup:app",
    "audit": "pilot.commands.audit:app",
    "dev": "pilot.dev.commands:app",
    "version": "pilot.commands.status:version_app",
}


class _LazyGroup(TyperGroup):
    """Imports a command's module only when it runs or when help lists it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        if cmd_name not in self.commands:
            module, _, name = _COMMANDS[cmd_name].partition(":")
            command = typer.main.get_command(getattr(importlib.import_module(module), name))
            command.name = cmd_name
            add_help(command, cmd_name)
            self.commands[cmd_name] = command
        return self.commands[cmd_name]

    def invoke(self, ctx: Any) -> Any:
        # Before typer makes exit codes of them, which a command may have from a program that it ran.
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError) as exc:
            raise PilotError("interrupted", exit_code=INTERRUPTED) from exc


app = typer.Typer(
    cls=_LazyGroup,
    name="pilot",
    help="Run a Shardhold cluster and manage its secrets.",
    no_args_is_help=True,
    # A traceback with locals would show secrets.
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
)


def run_command(arguments: list[str]) -> int:
    """Run one command line and return its exit code.

    Raises:
        PilotError: It failed, was interrupted, or cannot be parsed.
        BrokenPipeError: Nobody reads its output any more.
    """
    command = typer.main.get_command(app)
    add_help(command)
    try:
        code = command(arguments, prog_name="pilot", standalone_mode=False)
    except BaseUsageError as exc:
        if type(exc).__name__ == "NoArgsIsHelpError" and not wants_json(arguments):
            print(getattr(exc, "message", ""), file=sys.stderr)
            return USAGE
        raise describe_usage(exc) from exc
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer and rich end the process on it, with code 1
            raise exc.__context__ from None
        raise
    return code if isinstance(code, int) else DONE


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"pilot {__version__}")
        raise typer.Exit


@app.callback()
def _set_up(
    context: typer.Context,
    output: OutputOption = None,
    address: FirstAddressOption = None,
    svid_dir: SvidDirOption = None,
    unnamed_authorities: UnnamedOption = None,
    timeout: TimeoutOption = None,
    role: RoleOption = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None:
    context.obj = Settings(
        output=output or Output.TABLE,
        address=address or DEFAULT_ADDRESS,
        svid_dir=svid_dir,
        unnamed_authorities=bool(unnamed_authorities),
        timeout=timeout or DEFAULT_TIMEOUT_S,
        role=role,
    )
