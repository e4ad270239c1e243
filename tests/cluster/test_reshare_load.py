"""Reshares under load: no call notices one."""

import contextlib

import pytest

from pilot.dev.identities import parse_workload
from shardhold import WorkloadAPI
from tests.cluster.reshares import Reshares
from tests.cluster.traffic import Traffic
from tests.kit.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP = "/reshare-load/app"
STREAMS = 4  # of two readers and two writers each
RESHARES = 5
ANSWERS = 3  # that each worker gets between two reshares


def test_five_reshares_under_load(cluster: Cluster) -> None:
    """Eight readers and eight writers: not one try fails, and no get gives less than what was acknowledged."""
    cluster.allow(APP, ["reshare-load/**"], ["read", "write"])
    reshares = Reshares(cluster)
    with contextlib.ExitStack() as stack:
        identity = WorkloadAPI(f"unix:{cluster.dev.add_identity(parse_workload(APP))}")
        stack.callback(identity.close)
        streams = [Traffic(cluster.dev.address, identity, f"reshare-load/{number}") for number in range(STREAMS)]
        for stream in streams:
            stack.enter_context(stream.flowing())
        for _ in range(RESHARES):
            for stream in streams:
                stream.wait_answered(cluster, ANSWERS)
            reshares.reshare()
        for stream in streams:
            stream.wait_answered(cluster, ANSWERS)
    assert [failure for stream in streams for failure in stream.failures] == []
    reshares.check_world()
    assert reshares.find_current().set_number == 1 + RESHARES
