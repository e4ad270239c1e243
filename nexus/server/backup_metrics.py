"""The metrics of backups, as the schedule saw them at its last look."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.clock import Clock, to_micros
from nexus.admin.backup.schedule import BackupSchedule

_SECOND = 1_000_000  # microseconds


class BackupCollector(Collector):
    """Ages have no sample while there is no backup."""

    def __init__(self, schedule: BackupSchedule, clock: Clock) -> None:
        self._schedule = schedule
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        view = self._schedule.view
        ages = (
            ("age", "since the newest backup was made, as its name says", view.newest_at),
            ("verified_age", "since the newest backup that was verified was made", view.verified_at),
        )
        for name, text, at in ages:
            age = GaugeMetricFamily(f"shardhold_backup_{name}_seconds", text)
            if at:
                age.add_metric([], (to_micros(self._clock.now()) - at) / _SECOND)
            yield age
        yield GaugeMetricFamily("shardhold_backup_count", "backups of this cluster in the directory", value=view.count)
        yield CounterMetricFamily(
            "shardhold_backup_failures", "backups by schedule that failed since the start", value=view.failures
        )
