"""Init as single calls, so that a test can stop, repeat and falsify each."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

from common.keys.recovery_key import challenge_info, derive_public_key, hash_share, open_sealed
from pilot.dev.identities import SUPERUSER_PATH, Identity
from shardhold.channel import PinnedChannel
from shardhold.identity import WorkloadAPI
from shardhold.v1 import cluster_pb2 as pb
from shardhold.v1.cluster_pb2_grpc import ClusterServiceStub
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most

TIMEOUT_S = 20.0


@dataclass(frozen=True)
class Attempt:
    """What a founder knows of an attempt that has begun."""

    number: int
    cluster_id: bytes
    genesis: bytes
    voided: int
    answer: bytes  # 32 bytes, the opened challenge


class Founder:
    """Somebody who initialises, by calls of the contract. They wait for a nexus that was restarted."""

    def __init__(self, channel: PinnedChannel) -> None:
        self._stub = ClusterServiceStub(channel)

    def begin(self, *, threshold: int = 2) -> Attempt:
        """Begin an attempt with a recovery key of its own, and open its challenge."""
        seed = os.urandom(32)
        hashes = [hash_share(os.urandom(33)) for _ in range(3)]
        request = pb.BeginInitRequest(
            shard_threshold=threshold,
            recovery_threshold=2,
            recovery_public_key=derive_public_key(seed),
            share_hashes=[pb.ShareHash(salt=one.salt, digest=one.digest) for one in hashes],
        )
        begun = self._stub.BeginInit(request, timeout=at_most(TIMEOUT_S), wait_for_ready=True)
        answer = open_sealed(begun.challenge, seed, challenge_info(begun.cluster_id, begun.attempt, begun.genesis))
        return Attempt(begun.attempt, begun.cluster_id, begun.genesis, begun.voided_attempt, answer)

    def confirm(
        self, attempt: Attempt, *, answer: bytes | None = None, timeout: float = TIMEOUT_S
    ) -> pb.ConfirmInitResponse:
        """Send the answer, or another one."""
        request = pb.ConfirmInitRequest(attempt=attempt.number, answer=attempt.answer if answer is None else answer)
        return self._stub.ConfirmInit(request, timeout=timeout, wait_for_ready=True)

    def abort(self, attempt: Attempt) -> None:
        """Void the attempt."""
        request = pb.AbortInitRequest(attempt=attempt.number)
        self._stub.AbortInit(request, timeout=at_most(TIMEOUT_S), wait_for_ready=True)


@contextlib.contextmanager
def founding(cluster: Cluster, path: str = SUPERUSER_PATH) -> Iterator[Founder]:
    """Connect to the cluster's nexus as *path*, the superuser by default."""
    endpoint = cluster.dev.add_identity(Identity(path=path))
    identity = WorkloadAPI(f"unix:{endpoint}")
    channel = PinnedChannel(cluster.dev.address, identity, server_name="nexus.shardhold")
    try:
        yield Founder(channel)
    finally:
        channel.close()
        identity.close()
