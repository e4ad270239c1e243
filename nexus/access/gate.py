"""Authorise and audit every call, inside the domain: no handler can forget it.

- A call is authorised before it reads anything; a denial is audited and says nothing about what exists.
- A read's entry, with its outcome, is written before the reply; if it cannot be written, the call fails.
- A change's entry is a row of the change itself; a change that fails gets an entry like a read.
- A call that the state of the nexus refuses touched nothing and leaves no entry.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

from common.clock import Clock, to_micros
from common.errors import AuditUnavailableError, DeniedError, OutcomeUnknownError, RecoveringError, ShardholdError
from common.forms.audit.entry import Entry
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.access.roles import Role
from nexus.keys.opened import Serving
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission

T = TypeVar("T")

# Whom policies can allow anything; every other role reads no secret, whatever a policy says.
_POLICY_ROLES = frozenset({Role.WORKLOAD, Role.SUPERUSER})


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as proven by mTLS."""

    spiffe_id: str
    role: Role
    address: str


@dataclass(slots=True)
class Grant:
    """One authorised call on its way; the domain fills in what it did."""

    caller: Caller
    action: str
    path: str = ""
    policy: str = ""
    request_id: bytes = b""
    version: int = 0
    detail: str = ""
    in_store: bool = False  # the entry is a row of the change


class Gate:
    """Thread-safe."""

    def __init__(self, lifecycle: Lifecycle, audit: AuditLog, exporter: Exporter, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._audit = audit
        self._exporter = exporter
        self._clock = clock

    def secret_call(
        self, rpc: str, caller: Caller, permission: Permission, path: str, *, request_id: bytes = b""
    ) -> "Audited[tuple[Grant, Serving]]":
        """Authorise a call on the secret at *path* by policy; the block that follows is audited.

        Raises:
            DeniedError: No policy allows it.
            AuditUnavailableError: The entry cannot be written.
        """
        self._lifecycle.check_served(rpc)
        grant = Grant(caller, f"secret.{permission}", path, request_id=request_id)
        policy = self._decide(caller, permission, path, self._lifecycle.require_serving())
        if policy is None:
            self._deny(grant, f"{permission} on this path")
        grant.policy = policy
        return self._with_keys(grant)

    def listing_call(self, rpc: str, caller: Caller, prefix: str) -> "Audited[tuple[Grant, Serving]]":
        """Audit a listing; what it may show is asked path by path, with `may_list`."""
        self._lifecycle.check_served(rpc)
        grant = Grant(caller, f"secret.{Permission.LIST}", prefix)
        if not self._may_list_something(caller, self._lifecycle.require_serving()):
            self._deny(grant, str(Permission.LIST))
        return self._with_keys(grant)

    def may_list(self, caller: Caller, path: str, serving: Serving) -> bool:
        """Say whether *caller* may see that there is a secret at *path*."""
        return self._decide(caller, Permission.LIST, path, serving) is not None

    def role_call(
        self, rpc: str, caller: Caller, action: str, roles: frozenset[Role], *, reserve: bool = False
    ) -> "Audited[Grant]":
        """Authorise a call by the caller's role, and audit the block that follows.

        With *reserve* the entry may use the audit's reserve; that of a denial never does, or anybody could use it up.
        """
        self._lifecycle.check_served(rpc)
        grant = Grant(caller, action)
        if caller.role not in roles:
            self._deny(grant, "role " + " or ".join(sorted(roles)))
        if not reserve:
            self._require_audit()
        return Audited(self, grant, grant, reserve=reserve)

    @property
    def state(self) -> State:
        """The state that the nexus is in."""
        return self._lifecycle.state

    def require_serving(self) -> Serving:
        """Return what a ready nexus serves with; raises as `Lifecycle.require_serving`."""
        return self._lifecycle.require_serving()

    def check_still(self, serving: Serving) -> None:
        """Check that *serving* has not been withdrawn: what was made with keys that may be wiped is not committed.

        Raises:
            SealedError, RecoveringError: It has.
        """
        if self._lifecycle.require_serving() is not serving:
            raise RecoveringError("the keys of this change were withdrawn meanwhile")

    def borrow(self) -> AbstractContextManager[Serving]:
        """Use the keys of a ready nexus, so that they are not wiped meanwhile; raises as `Lifecycle.borrow`."""
        return self._lifecycle.borrow()

    def change_entry(self, grant: Grant) -> bytes:
        """Return the entry of a change, to be written in the change; no other will be."""
        grant.in_store = True
        return self._entry(grant, "ok").encode()

    def settle(self, grant: Grant, error: BaseException | None, *, reserve: bool, with_keys: bool) -> None:
        """Audit how an authorised call ended, and give its keys back; for `Audited` only.

        Raises:
            AuditUnavailableError: The entry cannot be written.
        """
        if with_keys:
            self._lifecycle.give_back()
        if isinstance(error, OutcomeUnknownError):
            self._lifecycle.give_up(f"{grant.action} by {grant.caller.spiffe_id}: {error}")
        elif error is None and grant.in_store:
            self._exporter.nudge()
        else:
            self._audit.append(self._entry(grant, _name_outcome(error)), reserve=reserve)

    def _require_audit(self) -> None:
        """Refuse before anything is done: a change would be made, and its entry wait in the store."""
        if self._audit.failing:
            raise AuditUnavailableError(f"audit is failing: {self._audit.failing}")

    def _with_keys(self, grant: Grant) -> "Audited[tuple[Grant, Serving]]":
        self._require_audit()
        return Audited(self, grant, (grant, self._lifecycle.lend()), with_keys=True)

    def _may_list_something(self, caller: Caller, serving: Serving) -> bool:
        view = serving.view
        if view.damaged or caller.role not in _POLICY_ROLES:
            return False
        return view.policies.allows_somewhere(caller.spiffe_id, Permission.LIST)

    def _decide(self, caller: Caller, permission: Permission, path: str, serving: Serving) -> str | None:
        view = serving.view
        if view.damaged or caller.role not in _POLICY_ROLES:
            return None
        return view.policies.decide(caller.spiffe_id, permission, path)

    def _deny(self, grant: Grant, wanted: str) -> NoReturn:
        self._audit.append(self._entry(grant, DeniedError.reason, decision="deny"))
        raise DeniedError(f"{grant.caller.spiffe_id} is not allowed: it needs {wanted}")

    def _entry(self, grant: Grant, outcome: str, *, decision: str = "allow") -> Entry:
        return Entry(
            at=to_micros(self._clock.now()),
            actor=grant.caller.spiffe_id,
            address=grant.caller.address,
            action=grant.action,
            path=grant.path,
            version=grant.version,
            decision=decision,
            policy=grant.policy,
            outcome=outcome,
            request_id=grant.request_id.hex(),
            detail=grant.detail,
        )


class Audited(Generic[T]):
    """An authorised call: gives *given* to its block, and audits how the block ended. It has to be entered at once."""

    __slots__ = ("_gate", "_given", "_grant", "_reserve", "_with_keys")

    def __init__(self, gate: Gate, grant: Grant, given: T, *, reserve: bool = False, with_keys: bool = False) -> None:
        self._gate = gate
        self._grant = grant
        self._given = given
        self._reserve = reserve
        self._with_keys = with_keys

    def __enter__(self) -> T:
        return self._given

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._gate.settle(self._grant, error, reserve=self._reserve, with_keys=self._with_keys)


def _name_outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return error.reason if isinstance(error, ShardholdError) else ShardholdError.reason
