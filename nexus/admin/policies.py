"""The policies of a cluster: apply, list, delete, each authorised and audited by the gate."""

from collections.abc import Sequence

from common.errors import InvalidArgumentError, NotFoundError
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.keys import manifest, records
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, load_view
from nexus.policy.rules import Policy, check_policy, check_policy_name, encode_policy
from nexus.store.protocol import Store, Writer

MAX_APPLIED = 100


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

    def list(self, caller: Caller) -> PolicyView:
        """Return all policies, and the names of damaged ones.

        Raises:
            DeniedError: The caller's role does not allow it.
        """
        with self._gate.keyed_call(calls.LIST_POLICIES, caller) as (_, serving):
            return serving.view

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
