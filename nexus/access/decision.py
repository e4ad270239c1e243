"""Whether policies let a caller do something: the one decision, which the gate makes and `explain` explains.

Rules:
- While a policy is damaged, policies allow nothing.
- A policy counts only for the roles of the call's row in `nexus.access.calls`.
- Otherwise it is allowed when a policy allows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from common.server.peer import find_trust_domain, is_member
from nexus.access import calls
from nexus.access.calls import Rpc
from nexus.access.roles import Role, Roles
from nexus.keys.opened import PolicyView
from nexus.policy.rules import Permission

_MOST_NAMED = 8  # policies in a sentence

# The call that stands for each permission; all calls that need one have the same roles.
_CALLS: dict[Permission, Rpc[Permission]] = {
    Permission.READ: calls.GET_SECRET,
    Permission.WRITE: calls.PUT_SECRET,
    Permission.DELETE: calls.DELETE_SECRET,
    Permission.LIST: calls.LIST_SECRETS,
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What policies say of a call that somebody would make, and why."""

    policies: tuple[str, ...]  # names of those that allow it, sorted; none: it is denied
    sentence: str


def find_policy(rpc: Rpc[Permission], spiffe_id: str, role: Role, path: str, view: PolicyView) -> str | None:
    """Return the name of a policy that allows the call, None: it is denied."""
    if _find_obstacle(rpc, role, view):
        return None
    return view.policies.decide(spiffe_id, rpc.permission, path)


def may_somewhere(rpc: Rpc[Permission], spiffe_id: str, role: Role, view: PolicyView) -> bool:
    """Say whether a policy allows the call on any path."""
    return not _find_obstacle(rpc, role, view) and view.policies.allows_somewhere(spiffe_id, rpc.permission)


def check_spiffe_id(spiffe_id: str) -> None:
    """Check that a caller could have *spiffe_id*.

    Raises:
        InvalidArgumentError: Not a SPIFFE ID with a path.
    """
    if find_trust_domain(spiffe_id) is None:
        raise InvalidArgumentError(f"spiffe_id: got {spiffe_id[:64]!r}, want spiffe://TRUST-DOMAIN/PATH and no glob")


def explain(roles: Roles, spiffe_id: str, permission: Permission, path: str, view: PolicyView) -> Explanation:
    """Say whether a checked *spiffe_id* may do something with a checked *path*, and why."""
    if not is_member(spiffe_id, roles.trust_domain):
        return Explanation((), f"{spiffe_id} is of another trust domain than {roles.trust_domain}: it cannot call")
    rpc, role = _CALLS[permission], roles.role_of(spiffe_id)
    if find_policy(rpc, spiffe_id, role, path, view) is not None:
        allowing = view.policies.list_allowing(spiffe_id, permission, path)
        return Explanation(tuple(allowing), f"allowed by {_name(allowing)}")
    return Explanation((), _find_obstacle(rpc, role, view) or _find_gap(spiffe_id, permission, view))


def _find_obstacle(rpc: Rpc[Permission], role: Role, view: PolicyView) -> str:
    """Return why no policy counts for the call; empty: policies decide."""
    if view.damaged:
        return f"no policy counts while one is damaged, changed outside Shardhold: {_name(view.damaged)}"
    if role not in rpc.roles:
        return f"no policy counts for the role {role}: it has no access to secrets"
    return ""


def _find_gap(spiffe_id: str, permission: Permission, view: PolicyView) -> str:
    """Return what the policies about *spiffe_id* lack."""
    if giving := view.policies.list_giving(spiffe_id, permission):
        return f"no policy allows it: {spiffe_id} has {permission} only on other paths, by {_name(giving)}"
    if about := view.policies.list_about(spiffe_id):
        return f"no policy allows it: {spiffe_id} has other permissions than {permission}, by {_name(about)}"
    return f"no policy is about {spiffe_id}"


def _name(policies: Sequence[str]) -> str:
    named = ", ".join(name[:64] for name in policies[:_MOST_NAMED])
    more = f" and {len(policies) - _MOST_NAMED} more" if len(policies) > _MOST_NAMED else ""
    return f"{'policy' if len(policies) == 1 else 'policies'} {named}{more}"
