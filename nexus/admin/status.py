"""Status: what the nexus says of itself and of its keepers, to whom."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.errors import CorruptRowError, ShardholdError, StoreUnavailableError
from nexus.access import calls
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Caller, Gate
from nexus.access.roles import PEOPLE
from nexus.admin.initialise import Initialisation
from nexus.admin.unseal import Unseal
from nexus.admin.vitals import Vitals, VitalSigns
from nexus.keepers.marks import NewerMark
from nexus.keepers.plan import find_record
from nexus.keepers.pool import KeeperPool
from nexus.keepers.seat import SeatStatus
from nexus.keys import manifest, records
from nexus.keys.keyed_read import read_with_key
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import load_facts
from nexus.keys.shard_set import Member
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Meta, Phase, Reader, Store

_NO_NUMBERS: Mapping[bytes, int] = MappingProxyType({})
_LOOKS = 3  # at a state that changes meanwhile
_UNREAD = Meta(Phase.EMPTY, b"", False, 0, 0, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class KeeperView:
    member: Member
    x: int  # 0: none yet
    status: SeatStatus
    sets: tuple[int, ...] = ()  # numbers of the sets that it last said it holds, ascending


@dataclass(frozen=True, slots=True)
class OperationStep:
    """How far what is in progress has come, in words."""

    kind: str
    step: str
    started_at: int = 0  # microseconds since 1970, as the next; 0: not known
    stepped_at: int = 0
    waits_for: str = ""  # empty: it goes on


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """What the cluster is: proved when the nexus is ready, else as the store says."""

    genesis: bytes  # 32 bytes
    shard_set: records.ShardSetRecord
    recovery: records.RecoveryKeyRecord | None  # None: the row does not verify


@dataclass(frozen=True, slots=True)
class ClusterView:
    """What callers with a role see."""

    blocked_by: list[str]
    alarms: list[str]
    meta: Meta  # all empty: the store cannot be read
    facts: ClusterFacts | None  # None: no cluster yet, or its rows do not decode
    memory_protection: int
    keepers: list[KeeperView]
    operation: OperationStep | None
    newer: NewerMark | None  # when the store is older than it says
    unseal: tuple[int, int] | None  # recovery shares submitted and needed
    vitals: Vitals


class Status:
    """Thread-safe."""

    def __init__(
        self,
        *,
        store: Store,
        gate: Gate,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        initialisation: Initialisation,
        warden: Warden,
        unseal: Unseal,
        memory_protection: int,
        audit: AuditLog,
        list_alarms: Callable[[], list[str]],
        find_wait: Callable[[], str],
        vitals: VitalSigns,
    ) -> None:
        """*find_wait* says what the operation on the root key waits for; empty: it goes on."""
        self._store = store
        self._gate = gate
        self._lifecycle = lifecycle
        self._pool = pool
        self._initialisation = initialisation
        self._warden = warden
        self._unseal = unseal
        self._memory_protection = memory_protection
        self._audit = audit
        self._list_alarms = list_alarms
        self._find_wait = find_wait
        self._vitals = vitals

    def describe(self, caller: Caller) -> tuple[State, ClusterView | None]:
        """Return the state, and the rest when *caller* is a person with a role."""
        with self._gate.role_call(calls.GET_STATUS, caller):
            if caller.role not in PEOPLE:
                return self._lifecycle.state, None
            for _ in range(_LOOKS):
                state = self._lifecycle.state
                view = self._view(state)
                if self._lifecycle.state is state:  # else it would say what blocks a nexus that is ready
                    break
            return state, view

    def _view(self, state: State) -> ClusterView:
        meta, facts, operation, newer, unread = _UNREAD, None, None, None, []
        try:
            with self._store.read() as reader:
                meta, facts = reader.load_meta(), self._find_facts(reader)
            operation = self._find_operation()
            newer = self._warden.find_newer_mark()
        except StoreUnavailableError as exc:
            unread.append(str(exc))
        return ClusterView(
            blocked_by=list(dict.fromkeys(self._warden.list_obstacles() + self._audit.list_obstacles() + unread)),
            alarms=self._list_alarms(),
            meta=meta,
            facts=facts,
            memory_protection=self._memory_protection,
            keepers=self._view_keepers(facts.shard_set if facts else None),
            operation=self._describe_init(state, meta) or operation,
            newer=newer,
            unseal=self._unseal.count(),
            vitals=self._vitals.take(),
        )

    def _describe_init(self, state: State, meta: Meta) -> OperationStep | None:
        if state is not State.INITIALISING:
            return None
        void = f"attempt {meta.last_init_attempt} is void: destroy its recovery shares and begin again"
        return OperationStep("init", self._initialisation.step or void)

    def _find_operation(self) -> OperationStep | None:
        """Return the operation on the root key, as far as the rows prove one."""

        def load(reader: Reader, root_key: RootKey) -> OperationStep | None:
            records.load_body(reader, *records.OPERATION)  # mostly there is none, and no manifest to verify
            record = load_facts(reader, root_key).operation
            if record is None:
                return None
            return OperationStep(record.depth, record.step, record.started_at, record.stepped_at, self._find_wait())

        with contextlib.suppress(ShardholdError), self._lifecycle.borrow() as serving:
            return read_with_key(self._store, serving, load)
        return None

    def list_keepers(self, caller: Caller) -> list[KeeperView]:
        """Return the keepers of the current set.

        Raises:
            DeniedError: The caller's role does not allow it.
        """
        with self._gate.keyed_call(calls.LIST_KEEPERS, caller) as (_, serving):
            sets = read_with_key(self._store, serving, load_facts).sets
            numbers = {one.set_id: number for number, one in sets.items()}
            return self._view_keepers(serving.shard_set.record, numbers)

    def _find_facts(self, reader: Reader) -> ClusterFacts | None:
        with contextlib.suppress(ShardholdError), self._lifecycle.borrow() as serving:
            return ClusterFacts(serving.genesis.fingerprint, serving.shard_set.record, serving.recovery)
        with contextlib.suppress(CorruptRowError):
            recovery = records.decode(records.RecoveryKeyRecord, records.load_body(reader, *records.RECOVERY_KEY))
            current = manifest.find_current_set(reader.load_meta().cluster_id, reader.load_controls())
            return ClusterFacts(records.load_genesis(reader).fingerprint, current, recovery)
        return None

    def _view_keepers(
        self, shard_set: records.ShardSetRecord | None, numbers: Mapping[bytes, int] = _NO_NUMBERS
    ) -> list[KeeperView]:
        """*numbers* are those of the known sets, by id."""
        members = shard_set.members if shard_set else ()
        views = []
        for seat in self._pool.seats:
            record, status = find_record(members, seat.member), seat.status
            held = sorted(numbers[set_id] for set_id in status.reported or () if set_id in numbers)
            views.append(KeeperView(seat.member, record.x if record else 0, status, tuple(held)))
        return views
