"""Requests that are sent again over a lost answer, by the SDK itself and byte for byte, also to a nexus that died."""

import os
from collections.abc import Callable, Iterator

import grpc
import pytest

import shardhold
from pilot.dev.directory import Plan
from shardhold.v1 import secrets_pb2
from tests.kit.cluster import Cluster, running
from tests.kit.lost_answers import lose_answers
from tests.kit.patience import at_most
from tests.kit.person import Person
from tests.kit.refusal import Refusal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

WRITER, OTHER = "/requests/writer", "/requests/other"
TIMEOUT_S = at_most(30)
PUT = "/shardhold.v1.SecretService/PutSecret"

Happening = Callable[[Cluster, str], None]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, and two workloads that may do everything below requests."""
    with running(tmp_path_factory.mktemp("requests") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        for path in (WRITER, OTHER):
            cluster.allow(path, ["requests/**"], ["read", "write", "delete"])
        yield cluster


def put_by_another(cluster: Cluster, path: str) -> None:
    cluster.workload(OTHER).put(path, {"value": "theirs"}, timeout=TIMEOUT_S)


def delete_and_put_by_another(cluster: Cluster, path: str) -> None:
    cluster.workload(OTHER).delete(path, timeout=TIMEOUT_S)
    put_by_another(cluster, path)


@pytest.fixture(params=["at once", "after a kill"])
def losing(cluster: Cluster, request: pytest.FixtureRequest) -> Callable[[str, str, Happening], shardhold.Client]:
    """Make a client whose next call of an RPC is answered, but not heard of, and something happens before the SDK's own
    retry; the nexus is also killed, and recovers, in one of two variants.
    """

    def lose(rpc: str, path: str, happens: Happening) -> shardhold.Client:
        client = cluster.workload(WRITER)
        lost = iter([True])

        def happen() -> bool:
            if not next(lost, False):
                return False
            happens(cluster, path)
            if request.param == "after a kill":
                cluster.restart_nexus()
            return True

        lose_answers(client, rpc, happen)
        return client

    return lose


Losing = Callable[[str, str, Happening], shardhold.Client]


def test_the_retry_of_a_delete_spares_what_was_put_since(cluster: Cluster, losing: Losing) -> None:
    """A delete whose answer is lost, a put of somebody else, and the SDK's retry: the put stays."""
    path = f"requests/{os.urandom(4).hex()}"
    client = losing("DeleteSecret", path, put_by_another)
    client.put(path, {"value": "old"})
    assert client.delete(path, timeout=TIMEOUT_S).versions == (1,)
    found = client.get(path)
    assert (found.fields, found.version) == ({"value": b"theirs"}, 1)


def test_the_retry_of_a_put_does_not_bury_what_was_put_since(cluster: Cluster, losing: Losing) -> None:
    """A put whose answer is lost, a delete and a put of somebody else, and the SDK's retry: theirs is on top."""
    path = f"requests/{os.urandom(4).hex()}"
    client = losing("PutSecret", path, delete_and_put_by_another)
    written = client.put(path, {"value": "mine"}, timeout=TIMEOUT_S)
    found = client.get(path)
    assert (found.fields, found.version) == ({"value": b"theirs"}, 1)
    assert found.incarnation != written.incarnation


def test_another_request_under_a_used_id_is_refused(cluster: Cluster) -> None:
    """A put of another value under a used id is INVALID_ARGUMENT, changes nothing, and the first is still repeated."""
    path, request_id = f"requests/{os.urandom(4).hex()}", os.urandom(16)
    writer = cluster.someone(WRITER)
    first = send(writer, path, request_id, b"first")
    revision = cluster.superuser.get_status().revision
    for value, expected in ((b"second", None), (b"first", 0), (b"", None)):
        with Refusal(grpc.StatusCode.INVALID_ARGUMENT, says="request_id"):
            send(writer, path, request_id, value, expected)
    with Refusal(grpc.StatusCode.INVALID_ARGUMENT, says="request_id"):
        writer.secrets.DeleteSecret(secrets_pb2.DeleteSecretRequest(path=path, request_id=request_id))
    assert cluster.superuser.get_status().revision == revision
    assert send(writer, path, request_id, b"first") == first
    assert send(cluster.someone(OTHER), path, request_id, b"second").version == 2


def send(
    person: Person, path: str, request_id: bytes, value: bytes, expected: int | None = None
) -> secrets_pb2.PutSecretResponse:
    """Put with a chosen id."""
    request = secrets_pb2.PutSecretRequest(
        path=path, fields={"value": value}, request_id=request_id, expected_version=expected
    )
    return person.secrets.PutSecret(request, timeout=TIMEOUT_S, wait_for_ready=True)


def test_a_request_is_the_same_in_every_encoding(cluster: Cluster) -> None:
    """What a message is encoded as, which protobuf leaves open, does not make it another request."""
    path, request_id = f"requests/{os.urandom(4).hex()}", os.urandom(16)
    parts = [
        secrets_pb2.PutSecretRequest(path=path).SerializeToString(),
        secrets_pb2.PutSecretRequest(fields={"a": b"1"}).SerializeToString(),
        secrets_pb2.PutSecretRequest(fields={"b": b"2"}).SerializeToString(),
        secrets_pb2.PutSecretRequest(request_id=request_id).SerializeToString(),
    ]
    put: grpc.UnaryUnaryMultiCallable[bytes, bytes] = cluster.someone(WRITER).channel.unary_unary(PUT)
    first = put(b"".join(parts), timeout=TIMEOUT_S)
    assert put(b"".join(reversed(parts)), timeout=TIMEOUT_S) == first
    assert put(b"".join((parts[1], *parts)), timeout=TIMEOUT_S) == first  # the last one of a field counts
