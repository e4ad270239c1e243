"""The signs of life that a status tells beside the state: each is counted or remembered elsewhere, and cheap to ask."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from common.clock import Clock, to_micros
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.admin.backup.backups import Backups
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.admin.operations.progress import JobView
from nexus.admin.operations.schedule import Schedule, ScheduleView
from nexus.keys.verified_backup import BackupRecord


@dataclass(frozen=True, slots=True)
class ProcessSigns:
    """What only the process knows."""

    find_svid_expiry: Callable[[], datetime | None] = lambda: None  # of the last SVID; None: there was none yet
    count_calls: Callable[[], int] = lambda: 0  # that were answered since the start


@dataclass(frozen=True, slots=True)
class AuditSigns:
    fault: str  # why entries cannot be written or exported; empty: they can
    seq: int  # of the last line
    unsynced: int  # lines that are not on the disk yet
    unexported: int  # entries of changes that are in the store and not in the files yet


@dataclass(frozen=True, slots=True)
class Vitals:
    """Moments are microseconds since 1970, by the clock of this nexus."""

    told_at: int
    started_at: int
    svid_expires_at: int  # 0: there was no SVID yet
    calls: int
    audit: AuditSigns
    rotation: ScheduleView
    job: JobView | None  # None: every row is under the current KEK
    makes_backups: bool
    backup: BackupRecord | None  # the newest that was verified; None: none, or the nexus is not ready


class VitalSigns:
    """Thread-safe."""

    def __init__(
        self,
        process: ProcessSigns,
        *,
        audit: AuditLog,
        exporter: Exporter,
        schedule: Schedule,
        job: KeyringJob,
        backups: Backups,
        clock: Clock,
    ) -> None:
        self._process = process
        self._audit = audit
        self._exporter = exporter
        self._schedule = schedule
        self._job = job
        self._backups = backups
        self._clock = clock
        self._started_at = to_micros(clock.now())

    def take(self) -> Vitals:
        """Return the signs of now."""
        svid_expires_at = self._process.find_svid_expiry()
        return Vitals(
            told_at=to_micros(self._clock.now()),
            started_at=self._started_at,
            svid_expires_at=to_micros(svid_expires_at) if svid_expires_at else 0,
            calls=self._process.count_calls(),
            audit=self._look_at_audit(),
            rotation=self._schedule.view,
            job=self._job.view(),
            makes_backups=self._backups.is_configured,
            backup=self._backups.newest,
        )

    def _look_at_audit(self) -> AuditSigns:
        """Wait for nothing: a disk may hang, and this is to say so."""
        audit = self._audit
        synced, unsynced = audit.synced_position.seq, audit.unsynced_lines
        return AuditSigns(audit.failing, synced + unsynced, unsynced, self._exporter.waiting)
