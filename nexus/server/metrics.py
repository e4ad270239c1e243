"""The metrics of a nexus, read at each scrape."""

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from nexus.access.audit.alarm import Alarm
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.admin.operations.schedule import Schedule
from nexus.keepers.pool import KeeperPool
from nexus.keys.operation.record import Step
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State


class NexusCollector(Collector):
    """Gauges over the live objects; nothing here is counted twice."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        pool: KeeperPool,
        *,
        memory_protection: int,
        is_audit_failing: Callable[[], bool],
        count_lacking_shards: Callable[[], int],
        outbox_alarms: tuple[Alarm, Alarm],
        is_way_back_broken: Callable[[], bool],
        find_step: Callable[[], Step | None],
        schedule: Schedule,
        job: KeyringJob,
        is_scrub_pending: Callable[[], bool],
    ) -> None:
        """*find_step* gives the step of the operation on the root key, None while there is none."""
        self._lifecycle = lifecycle
        self._pool = pool
        self._memory_protection = memory_protection
        self._is_audit_failing = is_audit_failing
        self._count_lacking_shards = count_lacking_shards
        self._outbox_alarms = outbox_alarms
        self._is_way_back_broken = is_way_back_broken
        self._find_step = find_step
        self._schedule = schedule
        self._job = job
        self._is_scrub_pending = is_scrub_pending

    def collect(self) -> Iterator[Metric]:
        state = GaugeMetricFamily("shardhold_nexus_state", "1 for the state the nexus is in", labels=["state"])
        for one in State:
            state.add_metric([one.value], float(one is self._lifecycle.state))
        yield state
        yield from self._collect_keepers()
        yield self._collect_step()
        yield from self._collect_rotation()
        yield from self._collect_job()
        yield GaugeMetricFamily(
            "shardhold_recovery_lacking_shards",
            "shards that a nexus without a root key still waits for; 0 when it waits for none",
            value=self._count_lacking_shards(),
        )
        yield GaugeMetricFamily(
            "shardhold_memory_protection_level", "3: memfd_secret, 2: locked, 1: plain", value=self._memory_protection
        )
        yield GaugeMetricFamily(
            "shardhold_audit_failing", "1 while audit entries cannot be written", value=float(self._is_audit_failing())
        )
        refused, missing = self._outbox_alarms
        yield CounterMetricFamily(
            "shardhold_audit_refused_rows", "forged audit rows found in the store", value=refused.count
        )
        yield CounterMetricFamily(
            "shardhold_audit_missing_rows", "audit entries that are gone from the store", value=missing.count
        )
        yield GaugeMetricFamily(
            "shardhold_way_back_broken",
            "1 while escrow or recovery key does not verify: custodians could not bring the cluster back",
            value=float(self._is_way_back_broken()),
        )

    def _collect_keepers(self) -> Iterator[Metric]:
        reachable = GaugeMetricFamily("shardhold_keeper_reachable", "1 while the keeper answers", labels=["keeper"])
        holds = GaugeMetricFamily(
            "shardhold_keeper_holds_current_set",
            "1 while it is proved that the keeper holds its shard",
            labels=["keeper"],
        )
        faulty = GaugeMetricFamily("shardhold_keeper_faulty", "1 while something is wrong with it", labels=["keeper"])
        dead = GaugeMetricFamily(
            "shardhold_dead_sets_held", "dead shard sets that the keeper has not dropped yet", labels=["keeper"]
        )
        serving = self._lifecycle.find_serving()
        droppable = serving.others.droppable if serving is not None else frozenset()
        # A keeper may be replaced by one of its name, which has a seat beside it: the first is of the current set.
        for seat in {seat.member.name: seat for seat in reversed(self._pool.seats)}.values():
            reachable.add_metric([seat.member.name], float(seat.status.reachable))
            holds.add_metric([seat.member.name], float(seat.status.holds_current_set))
            faulty.add_metric([seat.member.name], float(bool(seat.status.fault)))
        held: dict[str, int] = {}
        for seat in self._pool.seats:
            held[seat.member.name] = held.get(seat.member.name, 0) + len(droppable & (seat.status.reported or set()))
        for name, count in held.items():
            dead.add_metric([name], count)
        yield from (reachable, holds, faulty, dead)

    def _collect_step(self) -> Metric:
        step = GaugeMetricFamily(
            "shardhold_operation_step", "1 for the step that an operation on the root key is at", labels=["step"]
        )
        now = self._find_step()
        for one in Step:
            step.add_metric([one.value], float(one is now))
        return step

    def _collect_rotation(self) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "shardhold_root_generation_age_seconds",
            "since the current root key became current; no sample where that is not known",
        )
        if (seconds := self._schedule.key_age) is not None:
            age.add_metric([], seconds)
        yield age
        yield GaugeMetricFamily(
            "shardhold_rotation_due",
            "1 while the root key is to be replaced: by its age, or since custodians had it",
            value=float(self._schedule.view.is_rotation_due),
        )

    def _collect_job(self) -> Iterator[Metric]:
        view, serving = self._job.view(), self._lifecycle.find_serving()
        samples = (
            ("rewrap_rows_left", "rows that are not under the current KEK yet", view.rows_left if view else 0),
            ("rewrap_rows_per_second", "rows that came under the current KEK", view.rows_per_second if view else 0),
            ("quarantine_rows", "rows that do not open, and that nobody gave up", view.quarantine if view else 0),
            ("keks_old", "KEKs beside the current one", len(serving.keyring.list_keks()) - 1 if serving else 0),
            ("scrub_pending", "1 while what was deleted may be in the files yet", float(self._is_scrub_pending())),
        )
        for name, text, value in samples:
            yield GaugeMetricFamily(f"shardhold_{name}", text, value=value)
