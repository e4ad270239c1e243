"""What keeps the nexus from being ready, in words: for status, `/readyz` and the log."""

from collections.abc import Callable

import structlog

from common.errors import ShardholdError
from nexus.keepers.pool import KeeperPool
from nexus.lifecycle.executor import Executor
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery import KeeperRecovery
from nexus.lifecycle.states import NO_CLUSTER, State
from nexus.lifecycle.store_marks import StoreMarks

log = structlog.get_logger("warden")


class Obstacles:
    """Noted by whoever finds them; `list_now` and `count_lacking_shards` may be used by any thread."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        marks: StoreMarks,
        executor: Executor,
        inspect_store: Callable[[], str],
    ) -> None:
        self._lifecycle = lifecycle
        self._pool = pool
        self._marks = marks
        self._executor = executor
        self._inspect_store = inspect_store
        self.recovery: KeeperRecovery | None = None  # that brings the key back, or brought back the one that is held
        self.audit_gap = ""  # why the held key is not served with, when that is the audit
        self.store_fault = ""  # why the store ended ready, until the nexus is ready again
        self.trouble = ""  # what keeps the warden itself from going on
        self._lost_cluster = ""  # that keepers serve while the store knows of none, as it was told last

    def list_now(self) -> list[str]:
        """Say what keeps the nexus from being ready; empty when it is."""
        state = self._lifecycle.state
        if state is State.READY:
            return []
        noted = [self._describe_key(state), self._describe_lost_cluster(state)]
        if self.store_fault:
            noted.append(f"ready ended: {self.store_fault}")
        noted += [self.trouble, self._inspect_store()]
        if self.audit_gap and self._executor.held is not None:
            noted.append(f"{self.audit_gap}: find out why, or 'pilot audit accept-new-chain'")
        noted.append(self._describe_mark())
        return list(dict.fromkeys(filter(None, noted))) or [f"the nexus is {state}"]

    def count_lacking_shards(self) -> int:
        """Count the shards that are still to come before there can be a key; 0 when none is waited for."""
        recovery = self.recovery
        is_waiting = self._lifecycle.state is State.RECOVERING and self._executor.held is None
        return recovery.lacking if recovery is not None and is_waiting else 0

    def clear(self) -> None:
        """Forget what kept the nexus from being ready: it is about to be."""
        self.recovery = None
        self.audit_gap = self.store_fault = ""

    def tell_lost_cluster(self) -> None:
        """Log once that keepers serve a cluster, when this store knows of none."""
        serving = self._pool.describe_serving() if self._lifecycle.state in NO_CLUSTER else ""
        if serving != self._lost_cluster:
            self._lost_cluster = serving
            if serving:
                log.critical("store knows no cluster", but=serving)

    def _describe_key(self, state: State) -> str:
        recovery = self.recovery
        if state is State.SEALED:
            return "the nexus is sealed: custodians have to unseal it"
        return recovery.missing if recovery is not None and self._executor.held is None else ""

    def _describe_lost_cluster(self, state: State) -> str:
        serving = self._pool.describe_serving() if state in NO_CLUSTER else ""
        return f"the nexus is {state}, but {serving}: put the store of that cluster back" if serving else ""

    def _describe_mark(self) -> str:
        try:
            newer = self._marks.find_newer(self._executor.held)
            if newer is None and self._lifecycle.state is not State.RECOVERING:
                return ""
            meta = self._marks.load_meta()
            if newer is None and meta.is_restored:
                at = f"timeline {meta.timeline}, revision {meta.revision}"
                return f"store was restored from a backup of {at}: a superuser has to accept that"
            return newer.describe(meta) if newer is not None else ""
        except ShardholdError as exc:
            return str(exc)
