"""The connection to the nexus: identity, channel, stubs, and a time limit on every call."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import grpc

from pilot.errors import UNAVAILABLE, PilotError, UsageError
from pilot.options import Settings, complete_address
from pilot.terminal.output import show_time
from shardhold._errors import IdentityUnavailableError, from_rpc
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, Svid, SvidFiles, WorkloadAPI
from shardhold.v1.audit_pb2_grpc import AuditServiceStub
from shardhold.v1.backup_pb2_grpc import BackupServiceStub
from shardhold.v1.cluster_pb2_grpc import ClusterServiceStub
from shardhold.v1.policies_pb2_grpc import PolicyServiceStub
from shardhold.v1.recovery_pb2_grpc import RecoveryServiceStub
from shardhold.v1.root_pb2_grpc import RootServiceStub
from shardhold.v1.secrets_pb2_grpc import SecretServiceStub

SERVER_NAME = "nexus.shardhold"
ROLES = ("superuser", "operator", "recover", "auditor")
WORKLOAD = ""


def role_of(spiffe_id: str) -> str:
    """Return the role that a SPIFFE ID names in one of its segments, or "" for a workload. Only the nexus decides."""
    return next((segment for segment in spiffe_id.split("/")[3:] if segment in ROLES), WORKLOAD)


def choose_identity(offered: Sequence[str], *, role: str | None, preferred: Sequence[str]) -> str:
    """Choose one of the *offered* SPIFFE IDs: one with *role*, or with the best *preferred* role, or the first.

    Raises:
        PilotError: None has the requested role, or there is no such role.
    """
    if role is not None and role not in ROLES:
        raise UsageError(f"--role: got {role!r}, want {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    if role is not None:
        for spiffe_id in offered:
            if role_of(spiffe_id) == role:
                return spiffe_id
        raise PilotError(f"no SVID with the role {role}", f"there are: {', '.join(offered)}", exit_code=UNAVAILABLE)
    for wanted in preferred:
        for spiffe_id in offered:
            if role_of(spiffe_id) == wanted:
                return spiffe_id
    return offered[0]


def open_identity(settings: Settings, *, preferred: Sequence[str] = ()) -> IdentitySource:
    """Open the source of SVIDs that the options name.

    Raises:
        IdentityUnavailableError: No usable SVID.
        PilotError: None has the role asked for.
    """

    def choose(offered: Sequence[str]) -> str:
        return choose_identity(offered, role=settings.role, preferred=preferred)

    if settings.svid_dir is None:
        try:
            return WorkloadAPI(select=choose, timeout=settings.timeout)
        except IdentityUnavailableError as exc:
            if isinstance(exc.__cause__, PilotError):
                raise exc.__cause__ from exc
            raise
    files = SvidFiles(settings.svid_dir, unnamed_authorities=settings.unnamed_authorities)
    try:
        choose([files.current().spiffe_id])
    except (IdentityUnavailableError, PilotError):
        files.close()
        raise
    return files


class Connection:
    """A connection to the nexus as one caller. *preferred* are the roles that the command works with, best first."""

    def __init__(self, settings: Settings, *, preferred: Sequence[str] = ()) -> None:
        address = complete_address(settings.address)
        self._settings = settings
        self._identity = open_identity(settings, preferred=preferred)
        self._channel = PinnedChannel(address, self._identity, server_name=SERVER_NAME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()
        self._identity.close()

    @property
    def svid(self) -> Svid:
        return self._identity.current()

    @cached_property
    def cluster(self) -> ClusterServiceStub:
        return ClusterServiceStub(self._channel)

    @cached_property
    def secrets(self) -> SecretServiceStub:
        return SecretServiceStub(self._channel)

    @cached_property
    def policies(self) -> PolicyServiceStub:
        return PolicyServiceStub(self._channel)

    @cached_property
    def audit(self) -> AuditServiceStub:
        return AuditServiceStub(self._channel)

    @cached_property
    def backups(self) -> BackupServiceStub:
        return BackupServiceStub(self._channel)

    @cached_property
    def recovery(self) -> RecoveryServiceStub:
        return RecoveryServiceStub(self._channel)

    @cached_property
    def root(self) -> RootServiceStub:
        return RootServiceStub(self._channel)

    def call(
        self, method: Callable[..., Any], request: Any, *, timeout: float | None = None, waits: bool = False
    ) -> Any:
        """Call a stub's method, within *timeout* seconds or the option's; *waits* for a server that is not there yet.

        Raises:
            Error: The SDK's, whatever went wrong.
        """
        try:
            return method(request, timeout=timeout or self._settings.timeout, wait_for_ready=waits)
        except grpc.RpcError as exc:
            error = from_rpc(exc)
            if exc.code() is grpc.StatusCode.UNAVAILABLE and not error.reason:
                error.hint = self._look_at_clock() or error.hint
            raise error from exc

    def _look_at_clock(self) -> str:
        """Return a hint if the SVID begins in the future: then either the server's clock is right, or ours."""
        now = datetime.now(UTC)
        if self.svid.not_before <= now:
            return ""
        return (
            f"your SVID is valid from {show_time(self.svid.not_before)} on, and by this machine's clock it is "
            f"{show_time(now)}: is that right?"
        )
