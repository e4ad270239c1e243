"""The tables that follow from `nexus.access.calls`."""

from docs.tables.markdown import code, render_table
from nexus.access.calls import ALL, Rpc
from nexus.access.roles import Role
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission


def render_calls() -> str:
    """Return the table of RPC × role × state."""
    columns = ["RPC", "roles", "permission", *State, "in the audit", "reserve"]
    return render_table(columns, map(_render, ALL), centred=[*State, "reserve"])


def render_permissions() -> str:
    """Return which calls each permission is for."""
    rows = [
        (code(permission), ", ".join(code(rpc.name) for rpc in ALL if rpc.permission is permission))
        for permission in Permission
    ]
    return render_table(["permission", "lets a caller make"], rows)


def _render(rpc: Rpc[Permission | None]) -> list[str]:
    return [
        code(rpc.name),
        _render_roles(rpc),
        rpc.permission or "",
        *(_mark(state in rpc.states) for state in State),
        code(rpc.action),
        _mark(rpc.uses_reserve),
    ]


def _render_roles(rpc: Rpc[Permission | None]) -> str:
    if len(rpc.roles) == len(Role):
        return "all"
    starters = rpc.roles - rpc.roles_over_others if rpc.roles_over_others else frozenset()
    return ", ".join(f"{role} (its own)" if role in starters else role for role in Role if role in rpc.roles)


def _mark(holds: object) -> str:
    return "●" if holds else ""
