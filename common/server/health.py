"""Ask a server on this machine for its gRPC health: what the health commands of nexus and keeper do."""

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.config.config import split_address
from common.errors import UnavailableError
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, IdentityUnavailableError

SERVING = "SERVING"
HOLDS_SHARD = "shardhold.holds-shard"  # a condition of keepers: they serve, and hold a shard of some set
_CALLABLE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # a server may listen on every address, but a caller needs one


def ask_health(address: str, identity: IdentitySource, *, server_name: str, timeout: float, condition: str = "") -> str:
    """Return what the server that listens on *address* says: SERVING or NOT_SERVING.

    With a *condition* that the server knows by this name, that is what it says it of.

    Raises:
        UnavailableError: It does not answer within *timeout* seconds, or does not accept this identity.
        ConfigError: *address* is not host:port.
    """
    host, port = split_address("listen.address", address)
    host = _CALLABLE.get(host, host)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with PinnedChannel(target, identity, server_name=server_name) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=condition)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout)
        except (grpc.RpcError, IdentityUnavailableError) as exc:
            reason = exc if isinstance(exc, IdentityUnavailableError) else exc.details()
            raise UnavailableError(f"no health from {target}: {reason}") from exc
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
