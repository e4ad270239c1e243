"""Shards as keepers give them to a nexus, fetched with its identity, and what they combine to."""

from collections.abc import Sequence
from contextlib import closing

from common.clock import SystemClock
from common.keys import shamir
from common.keys.protected import Level, ProtectedMemory
from nexus.server.keeper_link import GrpcKeeperLink
from pilot.dev.configuration import socket_path
from pilot.dev.identities import server_identity
from pilot.dev.ports import HOST
from shardhold import WorkloadAPI
from tests.cluster.operations import Operations
from tests.kit.patience import at_most

_TIMEOUT_S = 5.0


def fetch_shards(reshares: Operations, *names: str) -> list[bytes]:
    """Fetch the shards of the current set from keepers, 33 bytes each."""
    state = reshares.cluster.dev.state
    memory = ProtectedMemory(highest=Level.LOCKED)
    cluster_id = reshares.cluster.superuser.get_status().cluster_id
    set_id = reshares.stored.find_current().set_id
    shards = []
    with closing(WorkloadAPI(f"unix:{socket_path(state, 'nexus')}")) as identity:
        for name in names:
            link = GrpcKeeperLink(
                name=name,
                address=f"{HOST}:{state.ports[name].grpc}",
                spiffe_id=server_identity(name).spiffe_id,
                identity=identity,
                clock=SystemClock(),
            )
            with memory.allocate(shamir.SHARD_SIZE) as shard:
                link.fetch_shard(cluster_id, set_id, into=shard, timeout=at_most(_TIMEOUT_S))
                shards.append(bytes(shard.view))
            link.close()
    return shards


def rebuild(shards: Sequence[bytes]) -> bytes:
    """Return the 32 bytes that *shards* combine to, whatever they are."""
    key = bytearray(shamir.SHARD_SIZE - 1)
    shamir.combine([memoryview(shard) for shard in shards], threshold=len(shards), into=memoryview(key))
    return bytes(key)
