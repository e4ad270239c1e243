"""The driver looks at an operation only once all that belongs to it is there."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys.operation.record import Outcome
from nexus.store.protocol import Reader, Store, Writer
from tests.kit import patience
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import OPERATOR
from tests.nexus.failing_store import FailingStore

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
