"""How an operation of the schedule begins: with the members and threshold of now, in the name of the nexus itself."""

import os

from common.clock import Clock, to_micros
from common.errors import OperationRefusedError
from common.forms.audit.entry import Entry
from nexus.access.calls import START_OPERATION
from nexus.admin.operations.starter import Beginning, Starter
from nexus.keepers.plan import list_members
from nexus.keys.opened import Serving
from nexus.keys.operation.evidence import Order
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.preflight import find_refusals
from nexus.keys.operation.record import Depth
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import load_facts
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store, Writer

_ID_SIZE = 16  # bytes


class ScheduledStart:
    """Thread-safe. *nexus* is the name that entries are written under."""

    def __init__(self, *, store: Store, warden: Warden, starter: Starter, clock: Clock, nexus: str) -> None:
        self._store = store
        self._warden = warden
        self._starter = starter
        self._clock = clock
        self._nexus = nexus

    def begin(self, depth: Depth, reason: str) -> None:
        """Begin an operation, unless a check refuses. Takes some seconds at most.

        Raises:
            OperationRefusedError: A check refuses, or something came first.
            SealedError, RecoveringError, WrongStateError: The nexus is not ready.
            UnavailableError: The new root key could not be sealed to the custodians.
            StoreUnavailableError: Not committed, or nobody knows.
        """
        current = self._warden.change(self._load_facts).current_set
        names = tuple(member.name for member in current.members)
        order = Order(depth, names, current.threshold, actor="", reason=reason, is_scheduled=True)
        beginning = Beginning(os.urandom(_ID_SIZE), order, list_members(current), current.set_id)
        checks, preflight = self._starter.check(beginning)
        if (refused := next(find_refusals(checks), None)) is not None:
            raise OperationRefusedError(refused.text, reason=refused.reason)

        def write_entry(writer: Writer, key: RootKey) -> None:
            now = to_micros(self._clock.now())
            entry = Entry(at=now, actor="", action=START_OPERATION.action, detail=f"{depth}: {reason}")
            append_entry(writer, key, self._nexus, entry.encode())

        self._starter.begin(beginning, preflight, write_entry)

    def _load_facts(self, serving: Serving) -> Facts:
        with self._store.read() as reader:
            return load_facts(reader, serving.root_key)
