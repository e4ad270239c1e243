"""What is searched for in the processes of a cluster, and what they do before."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from tests.kit.cluster import Cluster
from tests.kit.process_memory import find_keys
from tests.kit.stored_keys import derive_keys, find_shards, load_stored

REQUESTS = 1_000
CLIENTS = 16  # more than the nexus has workers, so that each of them has served some


def find_pid(cluster: Cluster, name: str) -> int:
    """Return the process id of a server."""
    return cluster.dev.state.processes[name].pid


def serve_requests(cluster: Cluster) -> None:
    """Make a thousand requests of all kinds, from many clients at once."""
    cluster.allow("/memory/app", ["memory/**"], ["read", "write", "delete", "list"])
    client = cluster.workload("/memory/app")

    def work(number: int) -> None:
        path = f"memory/{number % 50}"
        match number % 4:
            case 0:
                client.put(path, {"value": os.urandom(64)})
            case 3:
                assert list(client.list("memory"))
            case _:
                assert client.get("memory/fixed").fields["value"] == b"fixed"

    client.put("memory/fixed", {"value": b"fixed"})
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(work, range(REQUESTS)))


def find_all_keys(cluster: Cluster) -> dict[str, bytes]:
    """Return all keys that there are, with the shards of the current set where root can read them."""
    stored = load_stored(cluster)
    keys = derive_keys(stored, cluster.directory.recovery_shares)
    if cluster.plan.highest_level == 2:
        for name in ("nexus", *cluster.keepers):
            keys |= dict(find_shards(find_pid(cluster, name), stored))
        assert {f"shard of {name}" for name in cluster.keepers} <= keys.keys()
    return keys


def scan(cluster: Cluster, keys: Mapping[str, bytes]) -> list[str]:
    """Search the readable pages of all processes."""
    names = ("nexus", *cluster.keepers)
    return [f"{name}: {one}" for name in names for one in find_keys(find_pid(cluster, name), keys)]
