"""Write the table of docs/calls.md from `nexus.access.calls`: `python docs/generate.py`.

What stands above the table is prose, and stays.
"""

from pathlib import Path

from nexus.access.calls import ALL, Rpc
from nexus.access.roles import Role
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission

PAGE = Path(__file__).parent / "calls.md"
HEADING = "## Every call\n"


def render_table() -> str:
    """Return the table of RPC × role × state, in Markdown."""
    columns = ["RPC", "roles", "permission", *State, "in the audit", "reserve"]
    rows = [columns, ["---"] * 3 + [":---:"] * len(State) + ["---", ":---:"], *map(_render, ALL)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def render_page() -> str:
    """Return the page with its table as it has to be."""
    prose = PAGE.read_text().partition(HEADING)[0]
    return f"{prose}{HEADING}\n{render_table()}"


def _render(rpc: Rpc[Permission | None]) -> list[str]:
    return [
        f"`{rpc.name}`",
        _render_roles(rpc),
        rpc.permission or "",
        *(_mark(state in rpc.states) for state in State),
        f"`{rpc.action}`",
        _mark(rpc.uses_reserve),
    ]


def _render_roles(rpc: Rpc[Permission | None]) -> str:
    if len(rpc.roles) == len(Role):
        return "all"
    starters = rpc.roles - rpc.roles_over_others if rpc.roles_over_others else frozenset()
    return ", ".join(f"{role} (its own)" if role in starters else role for role in Role if role in rpc.roles)


def _mark(holds: object) -> str:
    return "●" if holds else ""


if __name__ == "__main__":
    PAGE.write_text(render_page())
