"""The memory promise through a rotation: what is staged, what is taken back, what is replaced, and what is new.

At level 2 root can read protected pages: then the old and the staged keys are searched for in these as well, and the
new ones have to be there.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

import grpc
import pytest

from nexus.keys.records import SetState
from shardhold.v1 import root_pb2 as pb
from tests.cluster.canary import fetch_shard
from tests.cluster.operations import TIMEOUT_S, Operations
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.process_memory import Finding, find_keys
from tests.kit.stored_keys import StoredCluster, derive_audit_seed, derive_keys, load_stored
from tests.memory.scanning import find_pid

pytestmark = pytest.mark.memory

SILENT = "keeper-5"  # while it does not answer, an operation waits for it before its flip
NOTHING: Mapping[str, bytes] = MappingProxyType({})
AT_SETTLE = "settle.collect:before:1:pause"  # after the flip: the nexus stands still, and is looked at


@dataclass(frozen=True)
class Taken:
    """The keys of one generation, in clear."""

    stored: StoredCluster  # as that of its set
    keys: dict[str, bytes]
    signing: dict[str, bytes]  # the audit key; while it is current, OpenSSL has it in memory of its own

    def without(self, others: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return the keys that are not among *others*: the KEK of before is for a while."""
        return {name: key for name, key in self.keys.items() if name not in others}


class Rotation:
    """What a test does with the root key of a cluster, and what it finds in its processes."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.operations = Operations(cluster)
        self.genesis = cluster.superuser.get_status().genesis
        self.silent: set[str] = set()  # keepers

    def hold(self) -> None:
        """Begin a rotation that waits before its flip, until `take_back`."""
        self.cluster.freeze(SILENT)
        self.silent.add(SILENT)
        self.begin()
        self.operations.wait_waiting(SILENT)

    def take_back(self) -> None:
        """Abort it, and let all keepers answer again."""
        self.operations.abort()
        assert self.operations.wait_ended().outcome == pb.OUTCOME_ABORTED
        self.cluster.thaw(SILENT)
        self.silent.clear()
        self.wait_at_rest()

    def begin(self) -> None:
        """Begin a rotation; the answer may be late, for the nexus may stop meanwhile."""
        request = pb.StartOperationRequest(
            operation_id=os.urandom(16), depth=pb.DEPTH_ROTATE, reason="memory", without_backup="memory", force=True
        )
        self.cluster.superuser.root.StartOperation(request, timeout=at_most(TIMEOUT_S))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Rotate as far as the failpoint; go on after the block, until every row is under the new KEK."""
        with ThreadPoolExecutor(1) as pool:
            begun = pool.submit(self.begin)
            self.operations.wait_asleep("nexus")
            yield
            self.cluster.thaw("nexus")
            begun.result()
        assert self.operations.wait_ended().outcome == pb.OUTCOME_SETTLED
        self.wait_at_rest()

    def wait_at_rest(self) -> None:
        """Wait until keepers have dropped what is dead, and the keyring job has ended."""

        def is_at_rest() -> bool:
            found = self.operations.look()
            return not found.dead_sets and not found.HasField("job") and len(found.keks) == 1

        self.cluster.wait("rest after the rotation", is_at_rest)

    def take(self, state: SetState) -> "Taken":
        """Copy the keys of the one set in this state and of its root key; nothing of custodians, who are not asked."""
        stored = load_stored(self.cluster)
        stored = replace(stored, shard_set=stored.find_set(state))
        keys = derive_keys(stored, self.cluster.directory.recovery_shares)
        kept = {name: key for name, key in keys.items() if not name.startswith(("recovery", "words", "value"))}
        number = stored.shard_set.set_number
        shards = {f"shard of {name} in set {number}": shard for name, shard in self.fetch(stored).items()}
        seed = derive_audit_seed(stored, keys[f"root key {stored.shard_set.generation}"])
        return Taken(stored, kept | shards, {f"audit key {stored.shard_set.generation}": seed})

    def find(self, keys: Mapping[str, bytes]) -> list[tuple[str, Finding]]:
        """Search all readable pages of every process, the protected ones as well."""
        return [
            (name, one)
            for name in ("nexus", *self.cluster.keepers)
            for one in find_keys(find_pid(self.cluster, name), keys, also_protected=True)
        ]

    def check(
        self, *, held: Mapping[str, bytes], gone: Mapping[str, bytes], leaving: Mapping[str, bytes] = NOTHING
    ) -> None:
        """See that keys that are *gone* are nowhere, and all others in protected memory only.

        Those that are *held* are there, where that can be read; those that are *leaving* may be.
        """
        found = self.find({**held, **gone, **leaving})
        wrong = [f"{name}: {one}" for name, one in found if one.key in gone or not one.is_protected]
        assert not wrong, "\n".join(wrong)
        if self.cluster.plan.highest_level == 2:
            assert {one.key for _, one in found} >= held.keys()

    def fetch(self, stored: StoredCluster) -> dict[str, bytes]:
        """Ask every keeper that answers for its shard of a set, as a nexus does; return what they gave."""
        label = stored.shard_set.label(stored.cluster_id, self.genesis)
        given = {}
        for member in stored.shard_set.members:
            if member.name not in self.silent:
                try:
                    given[member.name] = fetch_shard(self.cluster, label, member)
                except grpc.RpcError as exc:
                    if exc.code() is not grpc.StatusCode.NOT_FOUND:
                        raise
        return given


@pytest.fixture
def rotation(used_cluster: Cluster) -> Iterator[Rotation]:
    """A nexus that stops at the first settlement."""
    rotation = Rotation(used_cluster)
    rotation.operations.arm("nexus", AT_SETTLE)
    used_cluster.wait_ready()
    used_cluster.wait_filled()
    yield rotation
    used_cluster.restore()


def test_no_key_of_a_rotation_is_readable(rotation: Rotation) -> None:
    """Neither while it waits before its flip, nor after an abort, nor just after a flip, nor at the end.

    At the end keepers give nothing for the sets of before, and have nothing of them.
    """
    first = rotation.take(SetState.CURRENT)
    rotation.hold()
    second = rotation.take(SetState.PENDING)
    rotation.check(held=first.keys | second.keys, gone={})
    rotation.take_back()
    aborted = second.without(first.keys) | second.signing
    rotation.check(held=first.keys, gone=aborted)
    with rotation.paused():
        third = rotation.take(SetState.CURRENT)
        rotation.check(held=third.keys, gone=aborted, leaving=first.without(third.keys))
    assert rotation.fetch(first.stored) == rotation.fetch(second.stored) == {}
    last = rotation.take(SetState.CURRENT)
    assert third.keys.keys() - last.keys.keys() == {"KEK 2"} <= first.keys.keys()
    rotation.check(held=last.keys, gone=first.keys | first.signing | aborted)
    assert rotation.find(last.signing), "the search would find an audit key"
