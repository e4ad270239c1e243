"""A nexus that is started, without its wire, on a store that somebody damaged."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from common.keys.protected import Level, ProtectedMemory
from common.server.edge import Call
from nexus.keys.opened import prove
from tests.nexus.cluster import FoundedCluster, open_store
from tests.nexus.core import SUPERUSER, NexusCore


@contextlib.contextmanager
def started_on(folder: Path, cluster: FoundedCluster) -> Iterator[NexusCore]:
    """Start on the store in *folder*; raises as a start does."""
    memory = ProtectedMemory(highest=Level.LOCKED)
    with contextlib.ExitStack() as ending:
        store = open_store(folder)
        ending.callback(store.close)
        core = NexusCore(folder, store, memory, cluster.keepers())
        ending.callback(core.close)
        yield core


def bring_back(core: NexusCore, cluster: FoundedCluster) -> None:
    """Let it recover with the true key and shards; raises as a recovery does."""
    with core.store.read() as reader:
        meta, rows = reader.load_meta(), reader.load_controls()
    buffer = core.memory.allocate(len(cluster.root_key))
    buffer.view[:] = cluster.root_key
    points = []
    for shard in list(cluster.shards.values())[: cluster.record.threshold]:
        points.append(core.memory.allocate(len(shard)))
        points[-1].view[:] = shard
    core.lifecycle.install(prove(buffer, points, meta=meta, rows=rows, memory=core.memory))


def ask(core: NexusCore, rpc: str, request: Message) -> Any:
    """Make a call as a superuser, and return what its answer is on the wire; raises as the domain does."""
    method = next(method for method in core.list_methods() if method.name.endswith(f"/{rpc}"))
    answer = method.handle(Call(SUPERUSER.spiffe_id, "ipv4:127.0.0.1:1", 1.0), request)
    return method.response.FromString(answer.SerializeToString())
