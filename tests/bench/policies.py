"""Reads and decisions among many policies."""

import timeit
from collections.abc import Iterator
from itertools import cycle

from nexus.policy.rules import Permission, Policy, PolicySet
from pilot.dev.identities import SUPERUSER_PATH, TRUST_DOMAIN, Identity
from shardhold.channel import PinnedChannel
from shardhold.identity import WorkloadAPI
from shardhold.v1 import policies_pb2 as pb
from shardhold.v1.policies_pb2_grpc import PolicyServiceStub
from tests.bench.rounds import compare, interleave
from tests.bench.row import Row, at_least, at_most, make_row, microseconds, per_second
from tests.bench.stage import APP, PATH, Stage
from tests.kit.cluster import Cluster

POLICIES = 1000
DECISIONS = 20_000  # in one round
_APPLIED = 100  # policies in one call
_TIMEOUT_S = 30.0


def reads(stage: Stage) -> Iterator[Row]:
    """Measure a read among many policies, beside one with only its own policy and the superusers'."""
    apply(stage.crowded, make_policies(POLICIES - 2))
    crowded, nexus = stage.nexus_of(stage.crowded), stage.nexus
    for server in (crowded, nexus):
        stage.driver.call(server, "get", [PATH], calls=500)
    pairs = interleave(
        lambda: stage.drive(crowded, "get", [PATH]),
        lambda: stage.drive(nexus, "get", [PATH]),
        rounds=stage.pace.rounds,
    )
    speed = compare(pairs, lambda load: load.per_s)
    work = f"GetSecret with {POLICIES:,} policies; with two"
    yield make_row(work, speed, per_second, at_least(0.9, speed.ratio.median))


def decisions(stage: Stage) -> Iterator[Row]:
    """Measure one decision among many policies, in this process, beside one with a single policy."""
    own = Policy(name="bench", spiffe_ids=(_id(APP),), paths=("bench/**",), permissions=(Permission.READ,))
    pairs = interleave(
        lambda: _time_decision(PolicySet([own, *make_policies(POLICIES - 1)])),
        lambda: _time_decision(PolicySet([own])),
        rounds=stage.pace.rounds,
    )
    found = compare(pairs, lambda microseconds: microseconds)
    work = f"policy decision with {POLICIES:,} policies; with one"
    yield make_row(work, found, microseconds, at_most(20, "µs", found.measured))


def make_policies(count: int) -> list[Policy]:
    """Make policies of which one in three covers every workload, and most share no path."""
    return [
        Policy(
            name=f"team-{number}",
            spiffe_ids=(_id("/**") if number % 3 == 0 else _id(f"/team-{number}/*"),),
            paths=(f"team-{number}/**", f"shared/*/team-{number}"),
            permissions=(Permission.READ, Permission.LIST),
        )
        for number in range(count)
    ]


def apply(cluster: Cluster, policies: list[Policy]) -> None:
    """Apply policies as the superuser."""
    identity = WorkloadAPI(f"unix:{cluster.dev.add_identity(Identity(path=SUPERUSER_PATH))}")
    messages = [
        pb.Policy(
            name=policy.name,
            spiffe_ids=policy.spiffe_ids,
            paths=policy.paths,
            permissions=[pb.PERMISSION_READ, pb.PERMISSION_LIST],
        )
        for policy in policies
    ]
    try:
        with PinnedChannel(cluster.dev.address, identity, server_name="nexus.shardhold") as channel:
            stub = PolicyServiceStub(channel)
            for first in range(0, len(messages), _APPLIED):
                request = pb.ApplyPoliciesRequest(policies=messages[first : first + _APPLIED])
                stub.ApplyPolicies(request, timeout=_TIMEOUT_S)
    finally:
        identity.close()


def _id(path: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}{path}"


def _time_decision(policies: PolicySet) -> float:
    paths = cycle([PATH, "bench/a/b/c", "team-3/app/db", "shared/x/team-7", "nobody/at/all"])
    caller = _id(APP)
    return (
        timeit.timeit(lambda: policies.decide(caller, Permission.READ, next(paths)), number=DECISIONS) / DECISIONS * 1e6
    )
