"""Pause and resume what goes on by itself, and the history of root keys: authorised and audited."""

from collections.abc import Callable, Mapping

from common.clock import Clock, to_micros
from common.errors import InvalidArgumentError
from common.failpoint import around
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.admin.seal import check_reason
from nexus.keys.keyed_read import read_with_key
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.settings import Hold, find_hold, pause, resume
from nexus.keys.records import GenerationRecord
from nexus.keys.ruled_change import Rule, commit_rule, load_facts
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store


class RotationCalls:
    """Thread-safe."""

    def __init__(
        self, *, store: Store, gate: Gate, warden: Warden, clock: Clock, on_change: Callable[[], None] = lambda: None
    ) -> None:
        """*on_change* wakes whoever is paused, or has to pause."""
        self._store = store
        self._gate = gate
        self._warden = warden
        self._clock = clock
        self._on_change = on_change

    def pause(self, caller: Caller, reason: str) -> None:
        """Hold the keyring job and the schedule; a later reason replaces an earlier one.

        An operation in progress goes on, and people may begin one.

        Raises:
            InvalidArgumentError: There is no reason, or it is too long, or not printable.
            StoreUnavailableError: Not committed.
        """
        check_reason(reason)
        if not reason.strip():
            raise InvalidArgumentError("reason: got nothing, want why rotation is paused")
        with self._gate.role_call(calls.PAUSE_ROTATION, caller) as record:
            record.detail = reason
            hold = Hold(reason, caller.spiffe_id, to_micros(self._clock.now()))
            self._commit(lambda facts, _: pause(facts, hold), record)

    def resume(self, caller: Caller) -> None:
        """Let the keyring job and the schedule go on; nothing changes when they are not paused.

        Raises:
            StoreUnavailableError: Not committed.
        """
        with self._gate.role_call(calls.RESUME_ROTATION, caller) as record:

            def rule(facts: Facts, _: int) -> Change:
                record.detail = find_hold(facts)
                return resume(facts)

            self._commit(rule, record)

    def history(self, caller: Caller) -> Mapping[int, GenerationRecord]:
        """Return the generations of the root key by number, ascending; those whose row does not verify are missing."""
        with self._gate.keyed_call(calls.LIST_GENERATIONS, caller) as (_, serving):
            facts = read_with_key(self._store, serving, load_facts)
            return dict(sorted(facts.generations.items()))

    def _commit(self, rule: Rule, record: CallRecord) -> None:
        with around("settings.commit"):
            self._warden.change(lambda serving: commit_rule(self._store, serving, rule, record.write))
        self._on_change()
