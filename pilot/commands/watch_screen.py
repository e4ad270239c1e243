"""What `pilot watch` shows: a status and its signs of life on one screen, at any width."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from rich import box
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pilot.commands.following import describe_job, describe_wait
from pilot.commands.status import list_hints, to_row
from pilot.commands.watching import FAILING_S, Sight
from pilot.plain import clean
from pilot.terminal.progress import show_duration

WIDE: Final = 76  # columns from which two panels stand side by side
_WIDEST: Final = 110  # columns that are used
_MARKED: Final = WIDE  # columns from which the keepers' marks have room
_ADDRESSED: Final = 96  # columns from which their addresses have
_SVID_SOON_S: Final = 60.0
_BARS: Final = "▁▂▃▄▅▆▇█"
_SPARKS: Final = 16  # columns of the history of calls
_STATE_STYLES: Final = {"ready": "bold green", "sealed": "bold red"}
_SHARD_SIGNS: Final = {"held": ("●", "green"), "not held": ("◌", "yellow"), "unreachable": ("○", "red")}
_WARNING, _TROUBLE, _FAINT = "yellow", "bold red", "dim"

Facts = Sequence[tuple[str, Text]]


def render_screen(sight: Sight, *, address: str, width: int, now: float, at: datetime) -> RenderableType:
    """Return the screen for *width* columns; *now* is in monotonic seconds, *at* the wall time."""
    status = sight.status
    parts: list[RenderableType] = [_render_head(sight, address, at), *_render_silence(sight, now)]
    width = min(width, _WIDEST)
    if status is not None:
        style = _FAINT if sight.silent_since else ""
        parts += _render_status(status, sight, width, style)
    grid = Table.grid()
    grid.add_column(width=width)
    for part in parts:
        grid.add_row(part)
    return grid


def _render_head(sight: Sight, address: str, at: datetime) -> RenderableType:
    state = sight.status["state"] if sight.status else "not seen yet"
    sign = "●" if sight.silent_since is None else "○"
    style = _STATE_STYLES.get(state, "bold yellow") if sight.silent_since is None else _FAINT
    left = Text.assemble((" Shardhold ", "bold reverse"), "  ", (f"{sign} {clean(state)}", style))
    head = Table.grid(expand=True)
    head.add_column(ratio=1)
    head.add_column(justify="right", no_wrap=True)
    head.add_row(left, Text(f"{clean(address)}  {at.astimezone(UTC):%H:%M:%SZ}", style=_FAINT))
    return head


def _render_silence(sight: Sight, now: float) -> list[RenderableType]:
    if sight.silent_since is None:
        return []
    lines = [Text(f"✗ nexus does not answer since {sight.silent_since:%H:%M:%SZ}: {clean(sight.why)}", style=_TROUBLE)]
    if sight.status is not None:
        lines.append(Text(f"  what follows is {show_duration(sight.find_age(now))} old", style=_WARNING))
    return [*lines]


def _render_status(status: dict[str, Any], sight: Sight, width: int, style: str) -> Iterable[RenderableType]:
    yield from (Text(f"✗ {clean(line)}", style=_TROUBLE) for line in status["blocked_by"])
    yield from (Text(f"▲ {clean(line)}", style=_WARNING) for line in status["alarms"])
    if status["audit"] and status["audit"]["fault"]:
        yield Text(f"  looked at every {FAILING_S:.0f} s while the audit fails, to spare its reserve", style=_FAINT)
    if status["told_at"] is None:
        yield Text("only people with a role see more: superuser, operator, auditor or recover", style=_FAINT)
        return
    yield from (Text(f"→ {clean(hint)}", style="cyan") for hint in list_hints(status))
    panels = [_panel("root key", _list_root(status), style), _panel("nexus", _list_nexus(status, sight), style)]
    work = [_panel("operation", facts, style)] if (facts := _list_work(status)) else []
    keepers = [_frame("keepers", _render_keepers(status, width))] if status["keepers"] else []
    if width >= WIDE:
        pair = Table.grid(expand=True)
        pair.add_column(ratio=1)
        pair.add_column(ratio=1)
        pair.add_row(*panels)
        yield pair
        yield from (*work, *keepers)
    else:
        yield from (*work, *keepers, *panels)  # what a low screen cuts off is what changes least


def _panel(title: str, facts: Facts, style: str) -> Panel:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style=_FAINT, no_wrap=True)
    table.add_column(overflow="fold", style=style)
    for name, value in facts:
        table.add_row(name, value)
    return _frame(title, table)


def _frame(title: str, content: RenderableType) -> Panel:
    return Panel(
        content, title=Text(title, style="not dim bold"), title_align="left", box=box.ROUNDED, border_style=_FAINT
    )


def _list_root(status: dict[str, Any]) -> Facts:
    facts = [("generation", _tell_generation(status)), ("shard set", _tell_set(status))]
    if needed := status["recovery_threshold"]:
        facts.append(("recovery", Text(f"any {needed} of {status['recovery_shares']} custodians")))
    facts.append(("rotation", _tell_rotation(status)))
    facts.append(("backup", _tell_backup(status)))
    if mark := status["newest_mark"]:
        facts.append(("mark", _tell_mark(mark, status)))
    return facts


def _list_nexus(status: dict[str, Any], sight: Sight) -> Facts:
    place = f"{status['revision'] or 0:,}, timeline {status['timeline'] or 0}"
    up = f"{_show_age(status['started_at'], status)}, version {clean(status['version'] or 'unknown')}"
    return [
        ("calls", _tell_calls(sight)),
        ("revision", Text(place)),
        ("up for", Text(up)),
        ("SVID", _tell_svid(status)),
        ("audit", _tell_audit(status["audit"])),
        ("memory", _tell_memory(status["memory_protection"] or 0)),
    ]


def _list_work(status: dict[str, Any]) -> Facts:
    facts: list[tuple[str, Text]] = []
    if operation := status["operation"]:
        step = f"{operation['step']} for {_show_age(operation['stepped_at'], status)}"
        facts.append((clean(operation["kind"]), Text(clean(step if operation["stepped_at"] else operation["step"]))))
        if operation["waits_for"]:
            facts.append(("waits for", Text(clean(operation["waits_for"]), style=_WARNING)))
    if job := status["keyring_job"]:
        facts.append(("re-wrapping", Text(describe_job(job))))
        if wait := describe_wait(job):
            facts.append(("", Text(clean(wait), style=_WARNING)))
    if unseal := status["unseal"]:
        facts.append(("unseal", Text(f"{unseal['submitted']} of {unseal['needed']} shares submitted")))
    return facts


def _render_keepers(status: dict[str, Any], width: int) -> Table:
    faulty = any(keeper["fault"] for keeper in status["keepers"])
    table = Table(box=None, pad_edge=False, expand=True, padding=(0, 2, 0, 0), header_style=_FAINT)
    columns = ["keeper", "shard"]
    columns += ["mark"] if width >= _MARKED else []
    columns += ["address"] if width >= _ADDRESSED or (width >= _MARKED and not faulty) else []
    columns += ["fault"] if faulty else []
    for name in columns:
        table.add_column(name, overflow="fold", ratio=1 if name == columns[-1] else None)
    for keeper in status["keepers"]:
        cells = _list_cells(keeper, status)
        table.add_row(*(cells[name] for name in columns))
    return table


def _list_cells(keeper: dict[str, Any], status: dict[str, Any]) -> dict[str, Text]:
    name, address, shard, fault = to_row(keeper)
    sign, style = _SHARD_SIGNS[shard]
    mark = keeper["mark"]
    marked = f"revision {mark['revision']:,}, {_show_age(mark['made_at'], status)} old" if mark else "none"
    return {
        "keeper": Text(clean(name)),
        "shard": Text(f"{sign} {shard}", style=style),
        "mark": Text(marked),
        "address": Text(clean(address)),
        "fault": Text(clean(fault), style=_WARNING),
    }


def _tell_generation(status: dict[str, Any]) -> Text:
    if not status["generation"]:
        return Text("none yet")
    since = status["rotation"]["activated_at"]
    return Text(f"{status['generation']}" + (f", current for {_show_age(since, status)}" if since else ""))


def _tell_set(status: dict[str, Any]) -> Text:
    if not status["set_number"]:
        return Text("none yet")
    text = f"{status['set_number']}, any {status['shard_threshold']} of {status['shard_count']} keepers"
    return Text(text, style=_WARNING if status["keepers_short"] else "")


def _tell_rotation(status: dict[str, Any]) -> Text:
    rotation = status["rotation"]
    if rotation["due"]:
        return Text("due now", style=_WARNING)
    if rotation["paused"]:
        return Text("paused", style=_WARNING)
    if rotation["next"] and rotation["next_at"]:
        return Text(f"{rotation['next']} in {_show_wait(rotation['next_at'], status)}")
    return Text("none scheduled")


def _tell_backup(status: dict[str, Any]) -> Text:
    backup = status["backup"]
    if not backup["configured"]:
        return Text("not configured", style=_WARNING)
    if backup["created_at"] is None:
        return Text("none verified" if status["state"] == "ready" else "not known now", style=_WARNING)
    return Text(f"verified, {_show_age(backup['created_at'], status)} old")


def _tell_mark(mark: dict[str, Any], status: dict[str, Any]) -> Text:
    held = f"{mark['keepers']} keeper{'s' if mark['keepers'] != 1 else ''}"
    text = f"{held}, {_show_age(mark['made_at'], status)} old"
    if (mark["timeline"], mark["revision"]) == (status["timeline"], status["revision"]):
        return Text(text)
    return Text(f"{text}, of revision {mark['revision']:,}", style=_WARNING)


def _tell_calls(sight: Sight) -> Text:
    rate = "…" if sight.rate is None else f"{sight.rate:,.0f} /s" if sight.rate >= 10 else f"{sight.rate:.1f} /s"
    return Text.assemble(rate, "  ", (render_sparks(sight.rates[-_SPARKS:]), "cyan"))


def _tell_svid(status: dict[str, Any]) -> Text:
    left = find_seconds(status["told_at"], status["svid_expires_at"])
    if left is None:
        return Text("unknown", style=_WARNING)
    if left <= 0:
        return Text(f"expired {show_duration(-left)} ago", style=_TROUBLE)
    return Text(f"expires in {show_duration(left)}", style=_WARNING if left < _SVID_SOON_S else "")


def _tell_audit(audit: dict[str, Any]) -> Text:
    if audit["fault"]:
        return Text(clean(f"failing: {audit['fault']}"), style=_TROUBLE)
    late = [f"{audit[name]:,} {name}" for name in ("unsynced", "unexported") if audit[name]]
    return Text(f"line {audit['seq']:,}, {', '.join(late) or 'all synced'}")


def _tell_memory(level: int) -> Text:
    names = {3: "memfd_secret", 2: "locked"}
    return Text(names.get(level, "plain, for development only"), style="" if level in names else _WARNING)


def render_sparks(rates: Sequence[float]) -> str:
    """Return one bar for each rate, the highest as a full one."""
    most = max(rates, default=0.0)
    if most <= 0:
        return _BARS[0] * len(rates)
    return "".join(_BARS[round(rate / most * (len(_BARS) - 1))] for rate in rates)


def find_seconds(begin: str | None, end: str | None) -> float | None:
    """Return the seconds between two moments of a status; None if one is not known."""
    try:
        return (datetime.fromisoformat(end or "") - datetime.fromisoformat(begin or "")).total_seconds()
    except ValueError:
        return None


def _show_age(moment: str | None, status: dict[str, Any]) -> str:
    return _show(find_seconds(moment, status["told_at"]))


def _show_wait(moment: str | None, status: dict[str, Any]) -> str:
    return _show(find_seconds(status["told_at"], moment))


def _show(seconds: float | None) -> str:
    return "unknown" if seconds is None else show_duration(max(0.0, seconds))
