"""`pilot root rotate`: a new root key, and every row under a new KEK."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from pilot.commands.following import fetch
from pilot.commands.operations import DryRunOption, ReasonOption, start
from pilot.errors import UsageError
from pilot.options import Settings

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from pilot.connection import Connection

_WARNING = """\
An emergency says that somebody else may have the root key of generation {generation}, and replaces it:
  generation {generation} is marked as compromised for good,
  and every value under an older KEK gets a new data key.
It takes nothing back: whoever had the key and a copy of the store has read what was in it. Change those
secrets where they are used."""


def rotate(
    settings: Settings,
    reason: ReasonOption = "",
    dry_run: DryRunOption = False,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Return when every row is under the new KEK, and fail if it was taken back."),
    ] = False,
    without_backup: Annotated[
        str,
        typer.Option(
            "--without-backup",
            metavar="REASON",
            help="Wait for no backup, and say why. Superuser only.",
            show_default=False,
        ),
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Although the root key is young; wants --reason. Superuser only.")
    ] = False,
    emergency: Annotated[
        bool, typer.Option("--emergency", help="Somebody else may have the root key: values get new data keys as well.")
    ] = False,
    suspected_since: Annotated[
        str,
        typer.Option(
            "--suspected-since",
            metavar="TIME",
            help="With --emergency: since when, as 2026-11-30T08:00:00Z.",
            show_default=False,
        ),
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="With --emergency: ask nothing; for automation.")] = False,
) -> None:
    """Replace the root key and the KEK while the nexus serves. Roles: operator, superuser.

    The keepers get shards of the new root key, and once it is current, every row is brought under the new KEK.
    """
    from shardhold.v1 import root_pb2 as pb

    _check(reason, dry_run=dry_run, force=force, emergency=emergency, suspected_since=suspected_since)
    request = pb.StartOperationRequest(
        depth=pb.DEPTH_EMERGENCY if emergency else pb.DEPTH_ROTATE,
        reason=reason,
        dry_run=dry_run,
        without_backup=without_backup,
        force=force,
        suspected_since=parse_moment(suspected_since) if suspected_since else None,
    )
    start(settings, request, wait=wait, confirm=_ask if emergency and not yes else None)


def parse_moment(text: str) -> "Timestamp":
    """Read a moment in the form of ISO 8601, in UTC where it names no other offset.

    Raises:
        UsageError: It has another form.
    """
    from google.protobuf.timestamp_pb2 import Timestamp

    moment = Timestamp()
    try:
        given = datetime.fromisoformat(text)
        moment.FromDatetime((given if given.tzinfo else given.replace(tzinfo=UTC)).astimezone(UTC))
    except (ValueError, OverflowError) as exc:
        raise UsageError(f"--suspected-since: got {text!r}, want a time as 2026-11-30T08:00:00Z") from exc
    return moment


def _check(reason: str, *, dry_run: bool, force: bool, emergency: bool, suspected_since: str) -> None:
    if emergency and force:
        raise UsageError("--force: an emergency needs none")
    if suspected_since and not emergency:
        raise UsageError("--suspected-since: goes with --emergency only")
    if (emergency or force) and not (reason or dry_run):
        raise UsageError(f"{'--emergency' if emergency else '--force'}: wants a --reason")


def _ask(connection: "Connection") -> None:
    """Make a person type which generation is compromised.

    Raises:
        PilotError: Not confirmed.
    """
    from pilot.terminal.confirmation import confirm
    from pilot.terminal.terminal import Terminal

    terminal = Terminal()
    terminal.check("--yes confirms without a terminal, for automation")
    generation = fetch(connection).generation
    phrase = f"generation {generation} is compromised"
    confirm(
        terminal,
        _WARNING.format(generation=generation),
        question=f"type: {phrase}",
        answers=(phrase,),
        refusal="not confirmed: nothing was begun",
    )
