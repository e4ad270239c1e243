"""A nexus that reshares, one action of its driver at a time: every part is real, only the keepers are played."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest

from common.errors import SealedError
from common.keys import shamir
from common.keys.protected import ProtectedMemory
from nexus.access.gate import Caller
from nexus.admin.operations.operations import OperationView
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.keys.lineage import find_chain
from nexus.keys.manifest import find_current_set
from nexus.keys.opened import Serving
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, EndedRecord, OperationRecord, Step
from nexus.keys.records import SetState
from nexus.keys.ruled_change import load_facts
from nexus.keys.shard_set import Member, ShardSet
from tests.kit import patience
from tests.kit.waiting import wait_until
from tests.nexus.cluster import FoundedCluster, members
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import DEADLINE_S, PlayedKeeper

NEW_ID = bytes(range(16))
NOTHING = ResharePlan()
DEPTHS = pytest.mark.parametrize("resharing", [Depth.RESHARE, Depth.ROTATE], indirect=True)


def join(number: int) -> Member:
    """Name the keeper with this number, as a plan does that lets it join."""
    return members(number)[-1]


@dataclass
class Resharing:
    """A nexus that serves 3 of 5, and what it has in store. The driver's thread runs only if a test starts it."""

    cluster: FoundedCluster
    keepers: list[PlayedKeeper]
    store: FailingStore
    core: NexusCore
    depth: Depth = Depth.RESHARE
    new_root_key: bytes = b""  # of the last rotation that began, in clear

    def begin(
        self,
        plan: ResharePlan = NOTHING,
        *,
        operation_id: bytes = NEW_ID,
        reason: str = "drill",
        caller: Caller = SUPERUSER,
    ) -> OperationView:
        """Begin an operation that no check refuses: a reshare, unless *depth* is another one."""
        operations, rotation = self.core.operations, RotatePlan(self.depth is Depth.EMERGENCY, without_backup="drill")
        if self.depth is Depth.RESHARE:
            _, view = operations.reshare(caller, operation_id, plan, reason, dry_run=False)
        else:
            _, view = operations.rotate(caller, operation_id, rotation, reason, dry_run=False)
        assert view is not None
        pending = self.core.lifecycle.require_serving().others.pending
        if pending is not None and pending.root_key is not None:
            self.new_root_key = bytes(pending.root_key.view)
        return view

    @property
    def current(self) -> FoundedCluster:
        """The cluster with the root key that is current in its store."""
        meta, rows = self.cluster.load()
        record = find_current_set(meta.cluster_id, rows)
        if record.generation == self.cluster.record.generation:
            return self.cluster
        return replace(self.cluster, root_key=self.new_root_key, record=record, links=find_chain(rows).records[1:])

    def prove_as_custodians(self) -> Serving:
        """Open the store with the root key that is current in it, and without points."""
        return self.current.prove_without_points()

    @property
    def facts(self) -> Facts:
        """What rules see now."""
        with self.core.lifecycle.borrow() as serving, self.cluster.store.read() as reader:
            return load_facts(reader, serving.root_key)

    @property
    def operation(self) -> OperationRecord | None:
        """The operation in progress."""
        return self.facts.operation

    @property
    def step(self) -> Step | None:
        """Its step."""
        record = self.operation
        return None if record is None else record.step

    @property
    def ended(self) -> EndedRecord | None:
        """The operation that ended last."""
        return self.facts.ended

    @property
    def states(self) -> dict[int, SetState]:
        """The states of all sets, by number."""
        return {number: one.state for number, one in sorted(self.facts.sets.items())}

    def drive(self, *, until: Callable[[], bool], what: str = "the driver") -> None:
        """Let the driver act, in this thread, until the condition holds."""

        def act() -> bool:
            if until():
                return True
            self.core.driver.step()
            return until()

        wait_until(act, what=what)

    def drive_to(self, step: Step | None) -> None:
        """Let the driver act until the operation is at *step*; None: until it has ended."""
        self.drive(until=lambda: self.step is step, what=f"step {step}")

    def drive_to_rest(self) -> None:
        """Let the driver act until no keeper has anything to drop and no row is left."""
        self.drive(until=lambda: self.step is None and len(self.facts.sets) == 1, what="rest")

    def wait_for_rest(self) -> None:
        """Wait until the driver's thread has nothing to do any more; it does not pause meanwhile."""

        def is_at_rest() -> bool:
            self.core.driver.wake()
            return self.step is None and len(self.facts.sets) == 1

        wait_until(is_at_rest, what="rest")

    @contextmanager
    def looking_at_commit(self) -> Iterator[None]:
        """Let the driver act once in another thread, after the next change is committed and before its caller hears."""
        thread = threading.Thread(target=self.core.driver.step)

        def look() -> None:
            thread.start()
            thread.join(1.0)  # it has looked by then, and has ended unless it wants to commit something

        self.store.after_write = look
        yield
        patience.join(thread, DEADLINE_S)

    def count_sets(self) -> dict[str, list[int]]:
        """Return by keeper the numbers of the sets that it holds."""
        return {
            keeper.name: sorted(label.set_number for label, _ in keeper.sets.values() if label is not None)
            for keeper in self.keepers
        }

    def actions(self) -> list[str]:
        """Return the actions of the entries that are part of changes, in order."""
        return [entry.action for _, entry in self.core.list_change_entries()]


def is_wiped_set(shard_set: ShardSet, memory: ProtectedMemory) -> bool:
    """Whether a set has no points any more, also for whoever still has it."""
    with memory.allocate(shamir.SHARD_SIZE) as shard:
        try:
            shard_set.derive_shard(1, shard)
        except SealedError:
            return True
    return False


def make_keeper(number: int) -> PlayedKeeper:
    """Make one that no set names yet."""
    keeper = PlayedKeeper(f"keeper-{number}")
    keeper.boot_id = os.urandom(16)
    return keeper
