"""Authorise and audit every call, inside the domain: no handler can forget it.

- What a call needs stands in its row of `nexus.access.calls`. It is authorised before it reads anything; a denial is
  audited and says nothing about what exists.
- A read's entry, with its outcome, is written before the reply; if it cannot be written, the call fails.
- A change's entry is a row of the change itself, authenticated with the root key; a change that fails, and one that is
  made before there is a root key, get an entry like a read.
- A call that finds the store not as this nexus left it ends ready.
- A call that the state of the nexus refuses touched nothing and leaves no entry.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import (
    AuditUnavailableError,
    DeniedError,
    OutcomeUnknownError,
    RecoveringError,
    ShardholdError,
    StoreFileLostError,
    StoreLostError,
)
from common.forms.audit.entry import Entry
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.access.calls import Rpc
from nexus.access.roles import PEOPLE, Role
from nexus.keys.opened import PolicyView, Serving
from nexus.keys.outbox import append_entry
from nexus.keys.signer import AuditAuthenticator
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.policy.globs import Range
from nexus.policy.rules import Permission
from nexus.store.protocol import OutboxRow, Writer


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, as proven by mTLS."""

    spiffe_id: str
    role: Role
    address: str


@dataclass(slots=True)
class CallRecord:
    """The audit entry of one call, being filled in; the domain adds what it did."""

    rpc: Rpc[Permission | None]
    caller: Caller
    clock: Clock
    nexus: str  # whose audit it is for
    path: str = ""
    request_id: bytes = b""
    policy: str = ""
    version: int = 0
    detail: str = ""
    row: OutboxRow | None = None  # the entry as a row of the change

    def write(self, writer: Writer, key: AuditAuthenticator) -> None:
        """Write the entry of a change as part of the change, authenticated with *key*; no other is written."""
        self.row = append_entry(writer, key, self.nexus, self.make_entry("ok").encode())

    def make_entry(self, outcome: str, *, decision: str = "allow") -> Entry:
        """Return the entry as it stands."""
        return Entry(
            at=to_micros(self.clock.now()),
            actor=self.caller.spiffe_id,
            address=self.caller.address,
            action=self.rpc.action,
            path=self.path,
            version=self.version,
            decision=decision,
            policy=self.policy,
            outcome=outcome,
            request_id=self.request_id.hex(),
            detail=self.detail,
        )


class Gate:
    """Thread-safe. Each call is a context manager: the block inside it is authorised, and audited by how it ends.

    Every call raises:
        SealedError, RecoveringError, WrongStateError: It is not served in this state.
        DeniedError: The caller may not.
        AuditUnavailableError: The entry cannot be written.
    """

    def __init__(self, lifecycle: Lifecycle, audit: AuditLog, exporter: Exporter, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._audit = audit
        self._exporter = exporter
        self._clock = clock

    @contextmanager
    def secret_call(
        self, rpc: Rpc[Permission], caller: Caller, path: str, *, request_id: bytes = b""
    ) -> Iterator[tuple[CallRecord, Serving]]:
        """Make a call on the secret at *path*, if a policy allows it; its keys are lent for the block."""
        self.check_served(rpc)
        record = CallRecord(rpc, caller, self._clock, self._audit.nexus, path, request_id)
        serving, era = self._lifecycle.lend()
        with self._settling(record, era):
            policy = _find_policy(rpc, caller, path, serving.view)
            if policy is None:
                raise _deny_by_policy(rpc, caller, "on this path")
            record.policy = policy
            self._require_audit()
            yield record, serving

    @contextmanager
    def listing_call(self, rpc: Rpc[Permission], caller: Caller, prefix: str) -> Iterator[tuple[CallRecord, Serving]]:
        """List below *prefix*, if a policy lets the caller list anything; each path is asked of `may_list`."""
        self.check_served(rpc)
        record = CallRecord(rpc, caller, self._clock, self._audit.nexus, prefix)
        serving, era = self._lifecycle.lend()
        with self._settling(record, era):
            if not _may_somewhere(rpc, caller, serving.view):
                raise _deny_by_policy(rpc, caller, "on some path")
            self._require_audit()
            yield record, serving

    @contextmanager
    def role_call(self, rpc: Rpc[None], caller: Caller) -> Iterator[CallRecord]:
        """Make a call that the caller's role allows."""
        self.check_served(rpc)
        record = CallRecord(rpc, caller, self._clock, self._audit.nexus)
        with self._settling(record):
            self._require_role(record)
            yield record

    @contextmanager
    def keyed_call(self, rpc: Rpc[None], caller: Caller) -> Iterator[tuple[CallRecord, Serving]]:
        """Make a call that the caller's role allows, on a ready nexus; its keys are lent for the block."""
        self.check_served(rpc)
        record = CallRecord(rpc, caller, self._clock, self._audit.nexus)
        serving, era = self._lifecycle.lend()
        with self._settling(record, era):
            self._require_role(record)
            yield record, serving

    def may_list(self, rpc: Rpc[Permission], caller: Caller, path: str, serving: Serving) -> bool:
        """Say whether *caller* may see that there is a secret at *path*."""
        return _find_policy(rpc, caller, path, serving.view) is not None

    def find_ranges(self, rpc: Rpc[Permission], caller: Caller, serving: Serving) -> tuple[Range, ...]:
        """Return the ranges outside of which `may_list` says no to every path; ascending and apart."""
        return serving.view.policies.find_ranges(caller.spiffe_id, rpc.permission)

    def check_owner(self, record: CallRecord, owner: str) -> None:
        """Check that the caller may undo what *owner*, a SPIFFE ID, started.

        Raises:
            DeniedError: Another caller started it, and the role is not enough.
        """
        if not may_act_on(record.rpc, record.caller, owner):
            raise _deny_by_role(record.caller, record.rpc.roles_over_others)

    def require_role(self, record: CallRecord, roles: frozenset[Role]) -> None:
        """Ask for one of *roles*, because of what the request asks for.

        Raises:
            DeniedError: The caller has another one.
        """
        if record.caller.role not in roles:
            raise _deny_by_role(record.caller, roles)

    def check_served(self, rpc: Rpc[Permission | None]) -> State:
        """Return the state that the nexus is in; raises as `nexus.lifecycle.states.check_served`."""
        return self._lifecycle.check_served(rpc.name, rpc.states)

    @property
    def state(self) -> State:
        """The state that the nexus is in."""
        return self._lifecycle.state

    def require_serving(self) -> Serving:
        """Return what a ready nexus serves with now; raises as `Lifecycle.require_serving`."""
        return self._lifecycle.require_serving()

    def check_still(self, serving: Serving) -> None:
        """Check that *serving* has not been withdrawn: what was made with keys that may be wiped is not committed.

        Raises:
            SealedError, RecoveringError: It has.
        """
        if self._lifecycle.require_serving() is not serving:
            raise RecoveringError("the keys of this change were withdrawn meanwhile")

    def _require_role(self, record: CallRecord) -> None:
        self.require_role(record, record.rpc.roles)
        if not _may_use_reserve(record):
            self._require_audit()

    def _require_audit(self) -> None:
        """Refuse before anything is done: a change would be made, and its entry wait in the store."""
        if self._audit.failing:
            raise AuditUnavailableError(f"audit is failing: {self._audit.failing}")

    @contextmanager
    def _settling(self, record: CallRecord, era: int | None = None) -> Iterator[None]:
        """Audit how the block ends. Keys of *era* are given back first: a seal does not wait for the audit's disk."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as exc:
            error = exc
            raise
        finally:
            if era is not None:
                self._lifecycle.give_back(era)
            self._settle(record, error)

    def _settle(self, record: CallRecord, error: BaseException | None) -> None:
        if isinstance(error, (StoreLostError, StoreFileLostError)):
            self._lifecycle.lose_store(str(error))
        if isinstance(error, OutcomeUnknownError):
            self._lifecycle.give_up(f"{record.rpc.action} by {record.caller.spiffe_id}: {error}")
        elif isinstance(error, DeniedError):  # never from the reserve, or anybody could use it up
            self._audit.append(record.make_entry(error.reason, decision="deny"))
        elif error is None and record.row is not None:
            self._exporter.take(record.row)
        elif not isinstance(error, AuditUnavailableError):
            self._audit.append(record.make_entry(_name_outcome(error)), reserve=_may_use_reserve(record))


def may_act_on(rpc: Rpc[Permission | None], caller: Caller, owner: str) -> bool:
    """Say whether *caller* may undo what *owner*, a SPIFFE ID, started."""
    return caller.spiffe_id == owner or caller.role in rpc.roles_over_others


def _find_policy(rpc: Rpc[Permission], caller: Caller, path: str, view: PolicyView) -> str | None:
    if view.damaged or caller.role not in rpc.roles:
        return None
    return view.policies.decide(caller.spiffe_id, rpc.permission, path)


def _may_somewhere(rpc: Rpc[Permission], caller: Caller, view: PolicyView) -> bool:
    if view.damaged or caller.role not in rpc.roles:
        return False
    return view.policies.allows_somewhere(caller.spiffe_id, rpc.permission)


def _may_use_reserve(record: CallRecord) -> bool:
    return record.rpc.uses_reserve and record.caller.role in PEOPLE


def _deny_by_policy(rpc: Rpc[Permission], caller: Caller, where: str) -> DeniedError:
    wanted = f"a policy has to give it {rpc.permission} {where}"
    if caller.role not in rpc.roles:
        wanted = f"it needs {_name_roles(rpc.roles)}, and {wanted}"
    return DeniedError(f"{caller.spiffe_id} is not allowed: {wanted}")


def _deny_by_role(caller: Caller, roles: frozenset[Role]) -> DeniedError:
    return DeniedError(f"{caller.spiffe_id} is not allowed: it needs {_name_roles(roles)}")


def _name_roles(roles: frozenset[Role]) -> str:
    return "role " + " or ".join(sorted(roles))


def _name_outcome(error: BaseException | None) -> str:
    if error is None:
        return "ok"
    return error.reason if isinstance(error, ShardholdError) else ShardholdError.reason
