"""The driver between people: operations that begin, end and are sealed away while it is at work."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from common.keys.protected import ProtectedMemory
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys.operation.record import Outcome
from nexus.store.protocol import Reader, Store, Writer
from tests.kit import patience
from tests.nexus.cluster import is_wiped, members
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import OPERATOR, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.played_keepers import PlayedKeeper

T = TypeVar("T")


class LateStore(FailingStore):
    """Lets the driver look, if it can, after a commit and before anything follows from that."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.wake: Callable[[], None] | None = None
        self._looked = threading.Event()

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with super().read() as reader:
            yield reader
        if threading.current_thread().name == "operation":
            self._looked.set()

    def write(
        self,
        change: Callable[[Writer], T],
        *,
        counts: bool = True,
        alone: bool = False,
        on_commit: Callable[[T], None] | None = None,
    ) -> T:
        def follow(result: T) -> None:
            wake, self.wake = self.wake, None
            if wake is not None:
                self._looked.clear()
                wake()
                self._looked.wait(patience.patience(0.3))
            if on_commit is not None:
                on_commit(result)

        return super().write(change, counts=counts, alone=alone, on_commit=follow)


def test_a_driver_that_is_awake_takes_nothing_from_an_operation_that_begins(
    make_nexus: MakeNexus, store: Store, wait_until: WaitUntil
) -> None:
    """It could look between the commit and the points of the new set: it would wipe them, or take the set back."""
    late = LateStore(store)
    core = make_nexus(store=late)
    core.pool.start()
    core.driver.start()
    wait_until(lambda: core.pool.count_holders() == 3)
    late.wake = core.driver.wake
    core.operations.reshare(OPERATOR, os.urandom(16), ResharePlan(), "", dry_run=False)
    wait_until(lambda: core.operations.describe(OPERATOR).last is not None, seconds=10.0)
    last = core.operations.describe(OPERATOR).last
    assert last is not None
    assert last.outcome is Outcome.SETTLED, last.detail


def test_no_points_of_an_operation_stay_in_memory(
    make_nexus: MakeNexus, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """Neither of the set that was replaced, nor of one that was taken back, nor of one that a seal ended."""
    core = make_nexus()
    core.pool.start()
    core.driver.start()
    wait_until(lambda: core.pool.count_holders() == 3)
    wait_until(lambda: not core.operations.describe(OPERATOR).operation)
    before = memory.free

    core.operations.reshare(OPERATOR, os.urandom(16), ResharePlan(), "", dry_run=False)
    wait_until(lambda: has_ended(core, Outcome.SETTLED))
    wait_until(lambda: memory.free == before, what="the points of the set before are wiped")

    for keeper in core.keepers.values():
        keeper.refusal = "takes nothing"
    operation_id = os.urandom(16)
    core.operations.reshare(OPERATOR, operation_id, ResharePlan(), "", dry_run=False)
    assert memory.free < before
    core.operations.abort(OPERATOR, operation_id, "")
    wait_until(lambda: memory.free == before, what="the points that were taken back are wiped")
    assert has_ended(core, Outcome.ABORTED)

    core.operations.reshare(OPERATOR, os.urandom(16), ResharePlan(), "", dry_run=False)
    core.seal.seal(SUPERUSER, "", seconds=10)
    core.close()
    assert is_wiped(memory)


def test_one_call_made_twice_at_once_begins_one_operation(make_nexus: MakeNexus, wait_until: WaitUntil) -> None:
    """Whoever did not wait for the answer and asks again gets the operation, not a refusal because of it."""
    core = make_nexus()
    slow = PlayedKeeper("keeper-4")
    slow.go.clear()
    core.keepers[slow.name] = slow
    core.pool.start()
    wait_until(lambda: core.pool.count_holders() == 3)
    operation_id, plan = os.urandom(16), ResharePlan(add=tuple(members(4)[3:]))
    with ThreadPoolExecutor(2) as executor:
        calls = [
            executor.submit(core.operations.reshare, SUPERUSER, operation_id, plan, "", dry_run=False) for _ in range(2)
        ]
        wait_until(lambda: slow.count("fetch_report") == 2)
        slow.go.set()
        views = [call.result(timeout=patience.at_most(20))[1] for call in calls]
    assert [view and view.record.id for view in views] == [operation_id] * 2


def has_ended(core: NexusCore, outcome: Outcome) -> bool:
    """Whether the last operation ended so, and none is in progress."""
    view = core.operations.describe(OPERATOR)
    return view.operation is None and view.last is not None and view.last.outcome is outcome
