"""The policies of a cluster: apply, get, list, delete and explain, each authorised and audited by the gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from common.errors import CorruptRowError, InvalidArgumentError, NotFoundError
from nexus.access import calls
from nexus.access.decision import Explanation, check_spiffe_id, explain
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.access.roles import Roles
from nexus.admin.policy_warnings import find_warnings
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, load_view
from nexus.policy.paths import check_path
from nexus.policy.rules import Permission, Policy, check_policy, check_policy_name, encode_policy
from nexus.store.protocol import Store, Writer

MAX_APPLIED = 100
MAX_PAGE = 100
MAX_PAGE_SIZE = 1024 * 1024  # bytes of encoded policies, but for the first of a page
MAX_DAMAGED = 1000  # names that are told
MAX_EXPLAINED = 1000  # names of policies that allow something
_MAX_NAME = 1024  # characters of one; a policy's name has at most 64


@dataclass(frozen=True, slots=True)
class PolicyPage:
    policies: tuple[Policy, ...]  # by name
    damaged: tuple[str, ...]  # on the first page
    following: str  # name after which the next page begins; empty: there is none


@dataclass(frozen=True, slots=True)
class Applied:
    revision: int  # after the change; of the store as it stands, when nothing was changed
    unchanged: tuple[str, ...]  # names of those that were in force as given
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """Which rows a change writes, and which it takes out."""

    put: Mapping[manifest.Key, bytes] = field(default_factory=dict)
    delete: tuple[manifest.Key, ...] = ()


class _UnchangedError(Exception):
    """Undoes a change that would change nothing."""

    def __init__(self, revision: int) -> None:
        self.revision = revision


class Policies:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate, roles: Roles) -> None:
        self._store = store
        self._gate = gate
        self._roles = roles

    def apply(self, caller: Caller, policies: Sequence[Policy]) -> Applied:
        """Create or replace *policies*, all or none. Those in force as given are left; if all are, nothing is changed.

        Raises:
            InvalidArgumentError: A policy is wrong, or two have one name.
            DeniedError: The caller's role does not allow it.
        """
        if not 1 <= len(policies) <= MAX_APPLIED:
            raise InvalidArgumentError(f"policies: got {len(policies)}, want 1 to {MAX_APPLIED}")
        for policy in policies:
            check_policy(policy)
        bodies = {(records.POLICY, policy.name): encode_policy(policy) for policy in policies}
        if len(bodies) < len(policies):
            raise InvalidArgumentError("policies: two have one name, want each name once")
        warnings = find_warnings(policies, self._roles)
        with self._gate.keyed_call(calls.APPLY_POLICIES, caller) as (record, _):
            unchanged: list[str] = []

            def plan(writer: Writer, serving: Serving) -> _Plan:
                found = manifest.load(writer, serving.root_key, serving.floor)
                put = _leave_out(found, bodies, serving.view)
                unchanged.extend(name for kind, name in bodies if (kind, name) not in put)
                if not put:
                    raise _UnchangedError(writer.load_meta().revision)
                record.detail = " ".join(name for _, name in put)
                return _Plan(put=put)

            try:
                revision = self._change(record, plan)
            except _UnchangedError as exc:
                revision = exc.revision
                record.detail = " ".join(["unchanged:", *unchanged])
            return Applied(revision, tuple(unchanged), tuple(warnings))

    def get(self, caller: Caller, name: str) -> Policy:
        """Return one policy.

        Raises:
            NotFoundError: There is none.
            CorruptRowError: It was changed outside Shardhold.
            DeniedError: The caller's role does not allow it.
        """
        with self._gate.keyed_call(calls.GET_POLICY, caller) as (record, serving):
            view = serving.view
            if name in view.damaged:
                raise CorruptRowError(f"policy {name[:_MAX_NAME]} was changed outside Shardhold")
            check_policy_name(name)
            record.detail = name
            if (policy := view.policies.find(name)) is None:
                raise NotFoundError(f"no policy {name}")
            return policy

    def list(self, caller: Caller, *, after: str = "", limit: int = 0) -> PolicyPage:
        """Return the policies after the name *after*, at most *limit* of them, 0: 100, and the names of damaged ones.

        Raises:
            InvalidArgumentError: Page size or token.
            DeniedError: The caller's role does not allow it.
        """
        if not 0 <= limit <= MAX_PAGE:
            raise InvalidArgumentError(f"page_size: got {limit}, want at most {MAX_PAGE}")
        if after:
            check_policy_name(after, what="page_token")
        with self._gate.keyed_call(calls.LIST_POLICIES, caller) as (_, serving):
            view = serving.view
        damaged = () if after else tuple(name[:_MAX_NAME] for name in view.damaged[:MAX_DAMAGED])
        left = [policy for policy in view.policies.policies if policy.name > after]
        page = _cut(left, limit or MAX_PAGE)
        return PolicyPage(page, damaged, page[-1].name if len(page) < len(left) else "")

    def delete(self, caller: Caller, name: str) -> int:
        """Delete one policy, or a damaged row of that name; return the revision.

        Raises:
            NotFoundError: There is none.
            DeniedError: The caller's role does not allow it.
        """
        with self._gate.keyed_call(calls.DELETE_POLICY, caller) as (record, serving):
            if name not in serving.view.damaged:
                check_policy_name(name)
            record.detail = name

            def plan(writer: Writer, serving: Serving) -> _Plan:
                if name not in serving.view.damaged and writer.load_control(records.POLICY, name) is None:
                    raise NotFoundError(f"no policy {name}")
                return _Plan(delete=((records.POLICY, name),))

            return self._change(record, plan)

    def explain(self, caller: Caller, spiffe_id: str, permission: Permission, path: str) -> Explanation:
        """Say whether *spiffe_id* may do something with *path*, and why.

        Raises:
            InvalidArgumentError: Not a SPIFFE ID, or not a path.
            DeniedError: The caller's role does not allow it.
        """
        check_path(path)
        check_spiffe_id(spiffe_id)
        with self._gate.keyed_call(calls.EXPLAIN_ACCESS, caller) as (record, serving):
            record.path, record.detail = path, f"{permission} by {spiffe_id}"
            return explain(self._roles, spiffe_id, permission, path, serving.view)

    def _change(self, record: CallRecord, find_plan: Callable[[Writer, Serving], _Plan]) -> int:
        def change(writer: Writer) -> tuple[int, Serving, Standing, PolicyView]:
            serving = self._gate.require_serving()  # here, not at the gate: as in `nexus.vault.secrets`
            try:
                plan = find_plan(writer, serving)
                standing = manifest.change(writer, serving.root_key, serving.floor, put=plan.put, delete=plan.delete)
                record.write(writer, serving.root_key)
                # Compiled here, where it can still be undone: after the commit nothing may keep it from being in force.
                view = load_view(writer, serving.root_key)
            finally:  # keys that may be wiped by now have proved nothing, not even that nothing is to change
                self._gate.check_still(serving)
            return writer.revision, serving, standing, view

        def follow(made: tuple[int, Serving, Standing, PolicyView]) -> None:
            _, serving, standing, view = made
            serving.follow(standing, view)

        return self._store.write(change, alone=True, on_commit=follow)[0]


def _leave_out(
    found: manifest.Controls, bodies: Mapping[manifest.Key, bytes], view: PolicyView
) -> dict[manifest.Key, bytes]:
    """Return those of *bodies* that differ from what is stored.

    All, while a policy is damaged, or was when *view* was made and is not any more: the change puts in force what it
    finds.
    """
    if found.damaged_of_kind(records.POLICY) or view.damaged:
        return dict(bodies)
    return {key: body for key, body in bodies.items() if found.bodies.get(key) != body}


def _cut(policies: Sequence[Policy], limit: int) -> tuple[Policy, ...]:
    """Return the beginning of *policies* that fits a page; at least one, if there is one."""
    size, count = 0, 0
    for policy in policies[:limit]:
        size += len(encode_policy(policy))
        if count and size > MAX_PAGE_SIZE:
            break
        count += 1
    return tuple(policies[:count])
