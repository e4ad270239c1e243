"""`pilot backup`: make backups, list them, and check that they are whole, with or without a nexus."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.commands import identity as identities
from pilot.commands.audit import GenesisOption, parse_genesis
from pilot.errors import UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, group_hex, print_facts, print_json, print_table, show_timestamp
from pilot.terminal.report import print_hint

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from common.forms.backup.opened import OpenedBackup
    from shardhold.v1 import backup_pb2 as pb

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Backups: one encrypted file each, which age opens too."
)

app.add_typer(identities.app, name="identity")

_WORKERS = ("operator", "superuser")
_READERS = (*_WORKERS, "auditor")
_PATIENCE_S = 900.0  # for a call that writes or reads a whole store
_LATEST = 253_402_300_799_000_000  # microseconds since 1970 at the end of the year 9999

IdentityOption = Annotated[
    Path | None,
    typer.Option(
        "--identity", metavar="FILE", help="Identity of a recipient: BACKUP is a file here.", show_default=False
    ),
]


@app.command()
@with_globals
def create(settings: Settings) -> None:
    """Make a backup of the state of now, in the directory of the nexus. Roles: operator, superuser."""
    from pilot.connection import Connection
    from shardhold.v1 import backup_pb2 as pb

    with Connection(settings, preferred=_WORKERS) as connection:
        timeout = max(settings.timeout, _PATIENCE_S)
        answer = connection.call(connection.backups.CreateBackup, pb.CreateBackupRequest(), timeout=timeout)
    _show(settings, answer.backup, {})
    print_hint("'pilot backup verify' opens it and reads it through")


@app.command("list")
@with_globals
def list_(settings: Settings) -> None:
    """List the backups in the directory of the nexus, the newest first. Roles: operator, superuser, auditor."""
    from pilot.connection import Connection
    from shardhold.v1 import backup_pb2 as pb

    with Connection(settings, preferred=_READERS) as connection:
        answer = connection.call(connection.backups.ListBackups, pb.ListBackupsRequest())
    documents = [_to_document(backup) for backup in answer.backups]
    if settings.output is Output.JSON:
        print_json({"backups": documents})
        return
    columns = ("name", "created_at", "size", "generation", "revision", "verified_at")
    rows = [[str(document[column] or "-") for column in columns] for document in documents]
    print_table([column.replace("_at", "") for column in columns], rows)


@app.command()
@with_globals
def verify(
    settings: Settings,
    backup: Annotated[
        str | None,
        typer.Argument(metavar="[BACKUP]", help="Its name, or with --identity its file.", show_default=False),
    ] = None,
    identity: IdentityOption = None,
    genesis: GenesisOption = None,
) -> None:
    """Check that a backup opens, is whole, and was made by the cluster: by the nexus, or here with --identity FILE.

    Without BACKUP: the newest one. Roles: operator, superuser; with --identity none.
    """
    fingerprint = parse_genesis(genesis)
    if identity is not None:
        if backup is None:
            raise UsageError("--identity needs BACKUP: the file that it opens")
        _verify_file(settings, Path(backup), identity, fingerprint)
        return
    if fingerprint:
        raise UsageError("--genesis is for --identity: a nexus knows its own")
    from pilot.connection import Connection
    from shardhold.v1 import backup_pb2 as pb

    with Connection(settings, preferred=_WORKERS) as connection:
        timeout = max(settings.timeout, _PATIENCE_S)
        request = pb.VerifyBackupRequest(name=backup or "")
        answer = connection.call(connection.backups.VerifyBackup, request, timeout=timeout)
    _show(settings, answer.backup, answer.rows)


@app.command()
@with_globals
def prune(
    settings: Settings,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be removed, and remove nothing.")] = False,
) -> None:
    """Remove the backups that the retention of the nexus does not keep. Roles: operator, superuser.

    The newest that was verified always stays, and so does one with a file of its name and '.hold' beside it.
    """
    from pilot.connection import Connection
    from shardhold.v1 import backup_pb2 as pb

    with Connection(settings, preferred=_WORKERS) as connection:
        answer = connection.call(connection.backups.PruneBackups, pb.PruneBackupsRequest(dry_run=dry_run))
    documents = [_to_document(backup) for backup in answer.removed]
    if settings.output is Output.JSON:
        print_json({"dry_run": dry_run, "removed": documents})
        return
    columns = ("name", "created_at", "size")
    rows = [[str(document[column]) for column in columns] for document in documents]
    print_table(("would be removed" if dry_run else "removed", "created", "size"), rows)


@app.command()
@with_globals
def status(settings: Settings) -> None:
    """Show how many backups there are, how old the newest are, and when the next one is due.

    Roles: operator, superuser, auditor.
    """
    from pilot.connection import Connection
    from shardhold.v1 import backup_pb2 as pb

    with Connection(settings, preferred=_READERS) as connection:
        answer = connection.call(connection.backups.ListBackups, pb.ListBackupsRequest())
    document = _to_status(answer)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        print_facts({name.replace("_", " "): _show_value(value) for name, value in document.items()})


def _to_status(answer: "pb.ListBackupsResponse") -> dict[str, Any]:
    schedule = answer.schedule
    verified = [backup for backup in answer.backups if backup.verified_at.seconds]
    return {
        "backups": len(answer.backups),
        "held": sum(backup.held for backup in answer.backups),
        "newest": answer.backups[0].name if answer.backups else None,
        "verified": verified[0].name if verified else None,
        "every_hours": schedule.interval_s // 3600 or None,
        "next_at": _to_text(schedule.next_at),
        "failures": schedule.failures,
        "failure": schedule.failure or None,
    }


def _verify_file(settings: Settings, file: Path, identity: Path, genesis: bytes) -> None:
    """Check a file without a nexus.

    Raises:
        BackupError: It is damaged, or of somebody else.
        PilotError: It or the identity cannot be read.
    """
    from common.forms.backup.header import check_signature
    from common.forms.backup.opened import decode_opened
    from common.keys import age
    from common.keys.hardening import harden_process

    harden_process()  # what opens every backup is about to be in this process's memory
    opened = decode_opened(age.read_backup(str(file).encode(), identities.open_identity(identity)))
    chain = check_signature(opened.contents, genesis=genesis)
    document = _to_offline_document(file, opened, chain.genesis.fingerprint)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        shown = document | {"genesis": group_hex(chain.genesis.fingerprint)}
        print_facts({name.replace("_", " "): _show_value(value) for name, value in shown.items()})
    if not genesis:
        print_hint(
            "is the genesis the one on the share cards? --genesis compares, and else nothing ties this backup to your "
            "cluster"
        )


def _to_offline_document(file: Path, opened: "OpenedBackup", genesis: bytes) -> dict[str, Any]:
    from google.protobuf.timestamp_pb2 import Timestamp

    header = opened.contents.header
    created_at = Timestamp()
    created_at.FromMicroseconds(min(header.created_at, _LATEST))
    return {
        "name": file.name,
        "size": file.stat().st_size,
        "cluster_id": header.cluster_id.hex(),
        "genesis": genesis.hex(),
        "timeline": header.timeline,
        "generation": header.generation,
        "revision": header.revision,
        "created_at": show_timestamp(created_at),
        "program": header.program,
        "rows": dict(sorted(opened.contents.rows.items())),
    }


def _show(settings: Settings, backup: "pb.Backup", rows: Any) -> None:
    document = _to_document(backup)
    if rows:
        document["rows"] = dict(sorted(rows.items()))
    if settings.output is Output.JSON:
        print_json(document)
    else:
        print_facts({name.replace("_", " "): _show_value(value) for name, value in document.items()})


def _show_value(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{count} {name}" for name, count in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _to_document(backup: "pb.Backup") -> dict[str, Any]:
    return {
        "name": backup.name,
        "size": backup.size,
        "timeline": backup.timeline,
        "generation": backup.generation,
        "revision": backup.revision,
        "created_at": _to_text(backup.created_at),
        "verified_at": _to_text(backup.verified_at),
        "held": backup.held,
    }


def _to_text(moment: "Timestamp") -> str | None:
    return show_timestamp(moment) if moment.seconds else None
