"""`pilot audit`: read the audit of a nexus, check it, and accept that a new chain begins."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.errors import PilotError, UsageError
from pilot.options import LARGEST_NUMBER, Settings, with_globals
from pilot.plain import clean, escape_json
from pilot.terminal.output import Output, print_facts, print_json, print_table, show_time
from pilot.terminal.report import print_hint

if TYPE_CHECKING:
    from common.forms.audit.verify import KnownLine, Report
    from pilot.connection import Connection
    from shardhold.v1.audit_pb2 import TailAuditResponse

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The audit: who asked for what, and whether its files are whole."
)

_READERS = ("auditor", "operator", "superuser")
_PAGE = 1_000  # lines
_WAIT_S = 20  # the most that a nexus waits for a line
_NO_LINE = "the nexus answered with something that is no line of an audit"
_PAUSE_S = 1.0  # after a nexus that has no room to wait
_COLUMNS = ("at", "actor", "action", "path", "decision", "outcome", "detail")

GenesisOption = Annotated[
    str | None,
    typer.Option(
        "--genesis", metavar="HEX", help="Fingerprint that the share cards show; else the nexus's own claim counts."
    ),
]
KnownOption = Annotated[
    str | None,
    typer.Option(
        "--known", metavar="TIMELINE:LINE:HASH", help="A line of an earlier check, which has to be there still."
    ),
]


@app.command()
@with_globals
def tail(
    settings: Settings,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, max=_PAGE, help="How many of the last lines.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with each new line, until Ctrl-C.")] = False,
    timeline: Annotated[
        int | None,
        typer.Option(min=0, max=LARGEST_NUMBER, metavar="T", help="Of an earlier timeline.", show_default=False),
    ] = None,
) -> None:
    """Show the last entries of the audit. With -o json: the lines as they stand in the files.

    Roles: auditor, operator, superuser.
    """
    from pilot.connection import Connection
    from shardhold.v1 import audit_pb2 as pb

    with Connection(settings, preferred=_READERS) as connection:
        page = _fetch(connection, settings, pb.TailAuditRequest(timeline=timeline, limit=lines))
        _show(settings, page, has_header=True)
        last = 0
        while follow:
            last = read_seq(page.lines[-1]) if page.lines else last
            request = pb.TailAuditRequest(timeline=page.timeline, after_seq=last, limit=_PAGE)
            request.wait.FromSeconds(_WAIT_S)
            page = _fetch(connection, settings, request)
            _show(settings, page, has_header=False)
            if not page.lines:
                time.sleep(_PAUSE_S)  # the nexus had no room for another caller who waits


@app.command()
@with_globals
def verify(
    settings: Settings,
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="Folder of audit files, checked without a nexus.", show_default=False),
    ] = None,
    genesis: GenesisOption = None,
    known: KnownOption = None,
) -> None:
    """Check every line, segment and signature of the audit: of the nexus, or of the files in DIR.

    Roles: auditor, operator, superuser; for DIR none.
    """
    fingerprint = parse_genesis(genesis)
    line = parse_known(known)
    if directory is not None:
        if not fingerprint:
            raise UsageError("DIR needs --genesis: the files alone do not say whose signatures they should bear")
        report = check_directory(directory, fingerprint, line)
    else:
        report = _check_nexus(settings, fingerprint, line)
    _print_report(settings, report)


@app.command("accept-new-chain")
@with_globals
def accept_new_chain(
    settings: Settings,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the audit; at most 256 characters.")],
) -> None:
    """Accept that audit files are gone or were changed: a new chain begins, and its first entry says so.

    Roles: operator, superuser.
    """
    from pilot.connection import Connection
    from shardhold.v1 import audit_pb2 as pb

    with Connection(settings, preferred=("operator", "superuser")) as connection:
        response = connection.call(connection.audit.AcceptNewChain, pb.AcceptNewChainRequest(reason=reason))
    if settings.output is Output.JSON:
        print_json({"timeline": response.timeline, "seq": response.seq})
    else:
        print_facts({"accepted": reason, "new chain": f"timeline {response.timeline}, line {response.seq}"})


def parse_genesis(text: str | None) -> bytes:
    """Return the fingerprint, which people type with or without spaces; empty for None.

    Raises:
        UsageError: It is not 64 digits.
    """
    if text is None:
        return b""
    return _parse_hash("--genesis", text)


def parse_known(text: str | None) -> "KnownLine | None":
    """Return the line that TIMELINE:LINE:HASH names.

    Raises:
        UsageError: It has another form.
    """
    from common.forms.audit.verify import KnownLine

    if text is None:
        return None
    timeline, _, rest = text.partition(":")
    seq, _, digest = rest.partition(":")
    if not (timeline.isdecimal() and seq.isdecimal()):
        raise UsageError(f"--known: got {text[:100]!r}, want TIMELINE:LINE:HASH")
    return KnownLine(int(timeline), int(seq), _parse_hash("--known", digest))


def check_directory(directory: Path, genesis: bytes, known: "KnownLine | None") -> "Report":
    """Check the files in *directory*.

    Raises:
        PilotError: It cannot be read, or holds no audit files.
    """
    from common.forms.audit.verify import verify as verify_files

    try:
        report = verify_files(directory, genesis=genesis, known=known)
    except OSError as exc:
        raise PilotError(f"{directory}: {exc.strerror or exc}") from exc
    if not report.chains and not report.faults:
        raise PilotError(f"{directory}: there are no audit files")
    return report


def read_seq(line: bytes) -> int:
    """Return the number of a line as it stands in the files.

    Raises:
        PilotError: It is no line of an audit.
    """
    seq = _read_line(line).get("seq")
    if not isinstance(seq, int):
        raise PilotError(_NO_LINE)
    return seq


def to_document(report: "Report") -> dict[str, Any]:
    """Return what a check found as its JSON document."""
    return {
        "chains": [
            {
                "nexus": chain.nexus,
                "timeline": chain.timeline,
                "segments": chain.segments,
                "lines": chain.seq,
                "hash": chain.digest.hex(),
                "signed_checkpoints": chain.signed,
                "signed_through": chain.signed_seq or None,
            }
            for chain in report.chains
        ],
        "torn_tails": [
            {"file": torn.file, "offset": torn.offset, "size": torn.size, "named": torn.is_named}
            for torn in report.torn_tails
        ],
        "accepted": [
            {"line": line.seq, "actor": line.entry.actor, "detail": line.entry.detail} for line in report.accepted
        ],
        "faults": [
            {"file": fault.file or None, "line": fault.line or None, "why": fault.why} for fault in report.faults
        ],
    }


def _parse_hash(option: str, text: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise UsageError(f"{option}: got {text[:100]!r}, want 64 hexadecimal digits")
    return digest


def _fetch(connection: "Connection", settings: Settings, request: Any) -> "TailAuditResponse":
    response: TailAuditResponse = connection.call(
        connection.audit.TailAudit, request, timeout=settings.timeout + request.wait.seconds
    )
    return response


def _check_nexus(settings: Settings, genesis: bytes, known: "KnownLine | None") -> "Report":
    from common.forms.audit.verify import KnownLine, verify_lines
    from pilot.connection import Connection
    from shardhold.v1 import audit_pb2 as pb
    from shardhold.v1.cluster_pb2 import GetStatusRequest

    with Connection(settings, preferred=_READERS) as connection:
        if not genesis:
            genesis = connection.call(connection.cluster.GetStatus, GetStatusRequest()).genesis
        answer = _fetch(connection, settings, pb.TailAuditRequest(limit=1))
        first = pb.TailAuditRequest(after_seq=0, limit=1)
        starts: list[bytes] = []
        ends = {answer.timeline: read_seq(answer.lines[-1])} if answer.lines else {}  # this check adds lines itself
        for timeline in answer.timelines:
            first.timeline = timeline
            starts += _fetch(connection, settings, first).lines
        if known is None and answer.HasField("head"):
            known = KnownLine(answer.head.timeline, answer.head.seq, answer.head.hash)
        chains = {
            timeline: _page_through(connection, settings, timeline, ends.get(timeline)) for timeline in answer.timelines
        }
        return verify_lines(answer.nexus, chains, starts, genesis=genesis, known=known)


def _page_through(connection: "Connection", settings: Settings, timeline: int, end: int | None) -> Iterator[bytes]:
    """Yield the lines of a chain, None: to its end."""
    from shardhold.v1 import audit_pb2 as pb

    after = 0
    while True:
        request = pb.TailAuditRequest(timeline=timeline, after_seq=after, limit=_PAGE)
        page = _fetch(connection, settings, request)
        yield from page.lines
        after += len(page.lines)
        if not page.lines or (end is not None and after >= end):
            return


def _print_report(settings: Settings, report: "Report") -> None:
    document = to_document(report)
    if settings.output is Output.JSON:
        print_json(document)
    else:
        columns = ("nexus", "timeline", "segments", "lines", "signed through", "hash of the last line")
        keys = ("nexus", "timeline", "segments", "lines", "signed_through", "hash")
        print_table(columns, [[str(chain[key] or "-") for key in keys] for chain in document["chains"]])
    for line in report.accepted:
        print_hint(f"line {line.seq}: {line.entry.actor} accepted a new chain")
    if not any(chain.signed for chain in report.chains):
        print_hint("no line is signed yet: nothing ties this audit to the genesis")
    if report.faults:
        fault = report.faults[0]
        place = f"{fault.file}, line {fault.line}: " if fault.file else ""
        raise PilotError(f"the audit is not whole: {place}{fault.why}", "keep the files as they are, and find out why")


def _show(settings: Settings, page: "TailAuditResponse", *, has_header: bool) -> None:
    if settings.output is Output.JSON:
        for line in page.lines:
            _print_line(line)
        sys.stdout.flush()
        return
    rows = [row for row in map(_to_row, page.lines) if row is not None]
    if has_header:
        print_table(_COLUMNS, rows)
        return
    for row in rows:
        print("  ".join(clean(cell) for cell in row if cell), flush=True)


def _print_line(line: bytes) -> None:
    """Print a line byte for byte; what would control a terminal is escaped on one."""
    _read_line(line)
    text = line.decode()
    print(escape_json(text) if sys.stdout.isatty() else text, end="")


def _read_line(line: bytes) -> dict[str, Any]:
    """Return the object that a line is.

    Raises:
        PilotError: It is none.
    """
    try:
        found = json.loads(line.decode())
    except (ValueError, RecursionError) as exc:
        raise PilotError(_NO_LINE) from exc
    if not isinstance(found, dict):
        raise PilotError(_NO_LINE)
    return found


def _to_row(line: bytes) -> tuple[str, ...] | None:
    """Return the cells of an entry, None for a line that is none."""
    entry = _read_line(line).get("entry")
    if not isinstance(entry, dict):
        return None
    defaults = (("action", ""), ("path", ""), ("decision", "allow"), ("outcome", "ok"), ("detail", ""))
    cells = (str(entry.get(name, default)) for name, default in defaults)
    return _show_at(entry.get("at", 0)), str(entry.get("actor", "") or "the nexus"), *cells


def _show_at(micros: object) -> str:
    try:
        return show_time(datetime.fromtimestamp(float(str(micros)) / 1e6, UTC))
    except (ValueError, OverflowError, OSError):
        return "unknown"
