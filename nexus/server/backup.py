"""BackupService: message → backups → message."""

from common.server.edge import Call
from nexus.admin.backup.backups import Backups
from nexus.admin.backup.directory import BackupFile
from nexus.admin.backup.schedule import BackupSchedule, BackupView
from nexus.server.auth import Authenticator
from shardhold.v1 import backup_pb2 as pb


class BackupHandlers:
    def __init__(self, backups: Backups, schedule: BackupSchedule, authenticator: Authenticator) -> None:
        self._backups = backups
        self._schedule = schedule
        self._identify = authenticator.identify

    def create_backup(self, call: Call, _: pb.CreateBackupRequest) -> pb.CreateBackupResponse:
        return pb.CreateBackupResponse(backup=_to_backup(self._backups.create(self._identify(call))))

    def list_backups(self, call: Call, _: pb.ListBackupsRequest) -> pb.ListBackupsResponse:
        listed = self._backups.list(self._identify(call))
        backups = [_to_backup(file, verified_at) for file, verified_at in listed]
        return pb.ListBackupsResponse(backups=backups, schedule=_to_schedule(self._schedule.view))

    def verify_backup(self, call: Call, request: pb.VerifyBackupRequest) -> pb.VerifyBackupResponse:
        verified = self._backups.verify(self._identify(call), request.name)
        header = verified.contents.header
        backup = pb.Backup(
            name=verified.file.name,
            size=verified.file.size,
            timeline=header.timeline,
            revision=header.revision,
            generation=header.generation,
        )
        backup.created_at.FromMicroseconds(header.created_at)
        backup.verified_at.FromMicroseconds(verified.verified_at)
        return pb.VerifyBackupResponse(backup=backup, rows=verified.contents.rows)

    def prune_backups(self, call: Call, request: pb.PruneBackupsRequest) -> pb.PruneBackupsResponse:
        removed = self._backups.prune_for(self._identify(call), dry_run=request.dry_run)
        return pb.PruneBackupsResponse(removed=[_to_backup(file) for file in removed])


def _to_schedule(view: BackupView) -> pb.BackupSchedule:
    schedule = pb.BackupSchedule(interval_s=view.interval, failures=view.failures, failure=view.failure)
    if view.next_at:
        schedule.next_at.FromMicroseconds(view.next_at)
    return schedule


def _to_backup(file: BackupFile, verified_at: int = 0) -> pb.Backup:
    backup = pb.Backup(
        name=file.name,
        size=file.size,
        timeline=file.timeline,
        revision=file.revision,
        generation=file.generation,
        held=file.is_held,
    )
    backup.created_at.FromMicroseconds(file.created_at)
    if verified_at:
        backup.verified_at.FromMicroseconds(verified_at)
    return backup
