"""The policies of a cluster: apply, list, delete, each authorised and audited by the gate."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError, NotFoundError
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, load_view
from nexus.policy.rules import Policy, check_policy, check_policy_name, encode_policy
from nexus.store.protocol import Store, Writer

MAX_APPLIED = 100
MAX_PAGE = 100
MAX_PAGE_SIZE = 1024 * 1024  # bytes of encoded policies, but for the first of a page
MAX_DAMAGED = 1000  # names that are told
_MAX_NAME = 1024  # characters of one; a policy's name has at most 64


@dataclass(frozen=True, slots=True)
class PolicyPage:
    policies: tuple[Policy, ...]  # by name
    damaged: tuple[str, ...]  # on the first page
    following: str  # name after which the next page begins; empty: there is none


class Policies:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate) -> None:
        self._store = store
        self._gate = gate

    def apply(self, caller: Caller, policies: Sequence[Policy]) -> int:
        """Create or replace *policies*, all or none; return the revision.

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
        with self._gate.keyed_call(calls.APPLY_POLICIES, caller) as (record, _):
            record.detail = " ".join(name for _, name in bodies)
            return self._change(record, put=bodies)

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
            return self._change(record, delete=[(records.POLICY, name)])

    def _change(
        self, record: CallRecord, *, put: dict[manifest.Key, bytes] | None = None, delete: Sequence[manifest.Key] = ()
    ) -> int:
        def change(writer: Writer) -> tuple[int, Serving, Standing, PolicyView]:
            serving = self._gate.require_serving()  # here, not at the gate: as in `nexus.vault.secrets`
            for kind, name in delete:
                is_damaged = name in serving.view.damaged
                if not is_damaged and writer.load_control(kind, name) is None:
                    raise NotFoundError(f"no policy {name}")
            standing = manifest.change(writer, serving.root_key, serving.floor, put=put, delete=delete)
            record.write(writer, serving.root_key)
            # Compiled here, where it can still be undone: after the commit nothing may keep it from being in force.
            view = load_view(writer, serving.root_key)
            self._gate.check_still(serving)
            return writer.revision, serving, standing, view

        def follow(made: tuple[int, Serving, Standing, PolicyView]) -> None:
            _, serving, standing, view = made
            serving.follow(standing, view)

        return self._store.write(change, alone=True, on_commit=follow)[0]


def _cut(policies: Sequence[Policy], limit: int) -> tuple[Policy, ...]:
    """Return the beginning of *policies* that fits a page; at least one, if there is one."""
    size, count = 0, 0
    for policy in policies[:limit]:
        size += len(encode_policy(policy))
        if count and size > MAX_PAGE_SIZE:
            break
        count += 1
    return tuple(policies[:count])
