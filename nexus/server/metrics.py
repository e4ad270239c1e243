"""The metrics of a nexus, read at each scrape. docs/metrics.md says what each means, and what to do about it."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import Clock, to_micros
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.admin.disks import Disks
from nexus.admin.operations.driver import OperationDriver
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.admin.operations.schedule import Schedule
from nexus.admin.unseal import Unseal
from nexus.keepers.pool import KeeperPool
from nexus.keys.operation.record import Step
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery_time import RecoveryTime
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store


class StateCollector(Collector):
    """Whether the nexus serves, and what it takes to get there."""

    def __init__(self, lifecycle: Lifecycle, warden: Warden, unseal: Unseal, recovery_time: RecoveryTime) -> None:
        self._lifecycle = lifecycle
        self._warden = warden
        self._unseal = unseal
        self._recovery_time = recovery_time

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("shardhold_nexus_state", "1 for the state the nexus is in", labels=["state"])
        for one in State:
            state.add_metric([one.value], float(one is self._lifecycle.state))
        yield state
        yield GaugeMetricFamily(
            "shardhold_recovery_lacking_shards",
            "shards that a nexus without a root key still waits for; 0 when it waits for none",
            value=self._warden.count_lacking_shards(),
        )
        yield _measure(
            "shardhold_recovery_seconds",
            "how long the last recovery took, from the start or the loss of the root key to ready; no sample before",
            self._recovery_time.last_s,
        )
        yield GaugeMetricFamily(
            "shardhold_unseal_session_open",
            "1 while custodians submit recovery shares",
            value=float(self._unseal.count() is not None),
        )
        yield GaugeMetricFamily(
            "shardhold_way_back_broken",
            "1 while escrow or recovery key does not verify: custodians could not bring the cluster back",
            value=float(self._warden.is_way_back_broken),
        )


class KeeperCollector(Collector):
    """The keepers as the nexus sees them, and the rollback marks that they have."""

    def __init__(self, lifecycle: Lifecycle, pool: KeeperPool, warden: Warden, clock: Clock) -> None:
        self._lifecycle = lifecycle
        self._pool = pool
        self._warden = warden
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        yield from self._collect_seats()
        yield self._collect_dead_sets()
        serving = self._lifecycle.find_serving()
        yield _measure(
            "shardhold_keepers_spare",
            "keepers that hold their shard beyond those that a restart needs; no sample while the nexus is not ready",
            None if serving is None else self._pool.count_holders() - serving.shard_set.record.threshold,
        )
        mark = self._warden.find_own_mark()
        yield _measure(
            "shardhold_mark_revision",
            "store revision of the newest rollback mark that this nexus made; no sample before its first",
            None if mark is None else mark.revision,
        )

    def _collect_seats(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily("shardhold_keeper_reachable", "1 while the keeper answers", labels=["keeper"])
        holds = GaugeMetricFamily(
            "shardhold_keeper_holds_current_set",
            "1 while it is proved that the keeper holds its shard",
            labels=["keeper"],
        )
        faulty = GaugeMetricFamily(
            "shardhold_keeper_faulty", "1 while something is wrong with the keeper", labels=["keeper"]
        )
        fault = GaugeMetricFamily(
            "shardhold_keeper_fault",
            "1 for the reason why something is wrong with the keeper; no sample while nothing is",
            labels=["keeper", "reason"],
        )
        mark_age = GaugeMetricFamily(
            "shardhold_mark_age_seconds",
            "since the keeper last had the newest rollback mark; no sample before it had one",
            labels=["keeper"],
        )
        # A keeper may be replaced by one of its name, which has a seat beside it: the first is of the current set.
        for seat in {seat.member.name: seat for seat in reversed(self._pool.seats)}.values():
            name, status = seat.member.name, seat.status
            reachable.add_metric([name], float(status.reachable))
            holds.add_metric([name], float(status.holds_current_set))
            faulty.add_metric([name], float(bool(status.fault)))
            if status.fault:
                fault.add_metric([name, status.fault_reason], 1.0)
            if status.marked_at is not None:
                mark_age.add_metric([name], max(0.0, self._clock.monotonic() - status.marked_at))
        yield from (reachable, holds, faulty, fault, mark_age)

    def _collect_dead_sets(self) -> Metric:
        dead = GaugeMetricFamily(
            "shardhold_dead_sets_held", "dead shard sets that the keeper has not dropped yet", labels=["keeper"]
        )
        serving = self._lifecycle.find_serving()
        droppable = serving.others.droppable if serving is not None else frozenset()
        held: dict[str, int] = {}
        for seat in self._pool.seats:
            held[seat.member.name] = held.get(seat.member.name, 0) + len(droppable & (seat.status.reported or set()))
        for name, count in held.items():
            dead.add_metric([name], count)
        return dead


class DiskCollector(Collector):
    """The audit, the store, and the room that is left for them."""

    def __init__(self, lifecycle: Lifecycle, audit: AuditLog, exporter: Exporter, disks: Disks) -> None:
        self._lifecycle = lifecycle
        self._audit = audit
        self._exporter = exporter
        self._disks = disks

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "shardhold_audit_failing", "1 while audit entries cannot be written", value=float(bool(self._audit.failing))
        )
        refused, missing = self._exporter.alarms
        yield from (
            CounterMetricFamily(
                "shardhold_audit_failures",
                "how often it began that audit entries cannot be written",
                value=self._audit.failures,
            ),
            CounterMetricFamily(
                "shardhold_audit_refused_rows", "forged audit rows found in the store", value=refused.count
            ),
            CounterMetricFamily(
                "shardhold_audit_missing_rows", "audit entries that are gone from the store", value=missing.count
            ),
            GaugeMetricFamily(
                "shardhold_audit_waiting_entries",
                "entries of changes that are in the store, and not in the audit files yet",
                value=self._exporter.waiting,
            ),
            GaugeMetricFamily(
                "shardhold_audit_unsynced_lines",
                "lines of the audit files that are not on the disk yet",
                value=self._audit.unsynced_lines,
            ),
        )
        serving = self._lifecycle.find_serving()
        yield _measure(
            "shardhold_store_revision",
            "revision of the store: goes up by one with each change; no sample while the nexus is not ready",
            None if serving is None else serving.floor.position.revision,
        )
        yield from self._collect_folders()

    def _collect_folders(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("shardhold_folder_bytes", "bytes of the files in the folder", labels=["folder"])
        free = GaugeMetricFamily(
            "shardhold_disk_free_bytes", "bytes that the disk of the folder has left", labels=["folder"]
        )
        size = GaugeMetricFamily("shardhold_disk_bytes", "bytes of the disk of the folder", labels=["folder"])
        for name, view in self._disks.views.items():
            used.add_metric([name], view.used)
            free.add_metric([name], view.free)
            size.add_metric([name], view.size)
        yield from (used, free, size)


class RotationCollector(Collector):
    """The root key: how old it is, what is done to it, and what is left to do afterwards."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        store: Store,
        driver: OperationDriver,
        schedule: Schedule,
        job: KeyringJob,
        clock: Clock,
    ) -> None:
        self._lifecycle = lifecycle
        self._store = store
        self._driver = driver
        self._schedule = schedule
        self._job = job
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        step = GaugeMetricFamily(
            "shardhold_operation_step", "1 for the step that an operation on the root key is at", labels=["step"]
        )
        seen, started_at = self._driver.seen_step, self._driver.seen_started_at
        for one in Step:
            step.add_metric([one.value], float(one is seen))
        yield step
        yield _measure(
            "shardhold_operation_seconds",
            "since the operation on the root key began that is in progress; no sample while there is none",
            None if started_at is None else max(0.0, (to_micros(self._clock.now()) - started_at) / 1e6),
        )
        yield _measure(
            "shardhold_root_generation_age_seconds",
            "since the current root key became current; no sample where that is not known",
            self._schedule.key_age,
        )
        yield GaugeMetricFamily(
            "shardhold_rotation_due",
            "1 while the root key is to be replaced: by its age, or since custodians had it",
            value=float(self._schedule.view.is_rotation_due),
        )
        yield from self._collect_job()

    def _collect_job(self) -> Iterator[Metric]:
        view, serving = self._job.view(), self._lifecycle.find_serving()
        samples = (
            ("rewrap_rows_left", "rows that are not under the current KEK yet", view.rows_left if view else 0),
            (
                "rewrap_rows_per_second",
                "rows that came under the current KEK in a second",
                view.rows_per_second if view else 0,
            ),
            ("quarantine_rows", "rows that do not open, and that nobody gave up", view.quarantine if view else 0),
            ("keks_old", "KEKs beside the current one", len(serving.keyring.list_keks()) - 1 if serving else 0),
            ("scrub_pending", "1 while what was deleted may be in the files yet", float(bool(self._store.unscrubbed))),
        )
        for name, text, value in samples:
            yield GaugeMetricFamily(f"shardhold_{name}", text, value=value)


def _measure(name: str, text: str, value: float | None) -> Metric:
    """Make a gauge without a sample where there is nothing to say: None."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family
