"""Malformed requests to a running nexus: refused by field and limit, before anything is done, audited or asked.

What is no message at all is in `test_garbage.py`.
"""

import functools
import os
from collections.abc import Callable, Iterator

import grpc
import pytest

from pilot.dev.directory import Plan
from shardhold.v1 import cluster_pb2, policies_pb2, secrets_pb2
from tests.kit.cluster import Cluster, running
from tests.kit.person import Person
from tests.kit.refusal import Outcome, read_outcome

pytestmark = pytest.mark.cluster

PATH = "bad-input/secret"
MIB = 1024 * 1024

Call = Callable[[Person], object]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two keepers, and a secret."""
    with running(tmp_path_factory.mktemp("bad-input") / "dev", Plan(keepers=2, threshold=2)) as cluster:
        put(cluster.superuser)
        yield cluster


@pytest.fixture(params=["superuser", "stranger"])
def caller(cluster: Cluster, request: pytest.FixtureRequest) -> Person:
    """One who may do everything, and one who may do nothing: what is malformed is the same to both."""
    if request.param == "stranger":
        return cluster.someone("/bad-input/stranger")
    return cluster.person("superuser", "bad-input")


def put(person: Person, path: str = PATH, **parts: object) -> object:
    request = {"fields": {"value": b"v"}, "request_id": os.urandom(16)} | parts
    return person.secrets.PutSecret(secrets_pb2.PutSecretRequest(path=path, **request))  # type: ignore[arg-type]


def get(person: Person, path: str = PATH, version: int = 0) -> object:
    return person.secrets.GetSecret(secrets_pb2.GetSecretRequest(path=path, version=version))


def delete(person: Person, path: str = PATH, **parts: object) -> object:
    request = {"request_id": os.urandom(16)} | parts
    return person.secrets.DeleteSecret(secrets_pb2.DeleteSecretRequest(path=path, **request))  # type: ignore[arg-type]


def list_secrets(person: Person, prefix: str = "", **parts: object) -> object:
    return person.secrets.ListSecrets(secrets_pb2.ListSecretsRequest(prefix=prefix, **parts))  # type: ignore[arg-type]


def apply(person: Person, **parts: object) -> object:
    good = {"name": "bad", "spiffe_ids": ["spiffe://x/y"], "paths": ["a"], "permissions": [1]}
    policy = policies_pb2.Policy(**good | parts)  # type: ignore[arg-type]
    return person.policies.ApplyPolicies(policies_pb2.ApplyPoliciesRequest(policies=[policy]))


def check_refused(cluster: Cluster, caller: Person, call: Call, *says: str) -> Outcome:
    """It is an INVALID_ARGUMENT that says so, the store is where it was, and the audit has not heard of it."""
    revision, entries = cluster.superuser.get_status().revision, len(cluster.store.list_audit(caller.spiffe_id))
    outcome = read_outcome(functools.partial(call, caller))
    assert (outcome.code, outcome.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"), outcome
    for part in says:
        assert part in outcome.details
    assert cluster.superuser.get_status().revision == revision
    assert len(cluster.store.list_audit(caller.spiffe_id)) == entries
    return outcome


SEGMENT = "want 1 to 128 of [A-Za-z0-9._-], not '.' or '..'"
BAD_PATHS = [
    pytest.param("a/../b", f"segment 2 is '..', {SEGMENT}", id="a step up"),
    pytest.param("..", f"segment 1 is '..', {SEGMENT}", id="nothing but a step up"),
    pytest.param("a/./b", f"segment 2 is '.', {SEGMENT}", id="a step nowhere"),
    pytest.param("a//b", f"segment 2 is '', {SEGMENT}", id="an empty segment"),
    pytest.param("/a", "got a '/' at an end, want none", id="a slash before it"),
    pytest.param("a/", "got a '/' at an end, want none", id="a slash behind it"),
    pytest.param(
        "/".join(["s" * 119] * 4 + ["s" * 120]),
        "got 600 characters, want at most 512 bytes",
        id="600 bytes in segments",
    ),
    pytest.param("s" * 600, "got 600 characters, want at most 512 bytes", id="600 bytes in one segment"),
    pytest.param("s" * 129, SEGMENT, id="a segment of 129 bytes"),
    pytest.param("/".join("s" * 17), "got 17 segments, want at most 16", id="17 segments"),
    pytest.param("a/b\x00", f"segment 2 is 'b\\x00', {SEGMENT}", id="a zero byte"),
    pytest.param("a\nb", f"segment 1 is 'a\\nb', {SEGMENT}", id="a newline"),
    pytest.param("a\x1b[31m", SEGMENT, id="an escape sequence"),
    pytest.param("a\x7f", SEGMENT, id="a delete character"),
    pytest.param("a b", SEGMENT, id="a space"),
    pytest.param("päth", SEGMENT, id="a letter that is not ASCII"),
    pytest.param("a\\..\\b", SEGMENT, id="backslashes"),
    pytest.param("%2e%2e/b", SEGMENT, id="a step up as in a URL"),
    pytest.param("shardhold/canary", "begins with 'shardhold', which is reserved", id="what is reserved"),
]


@pytest.mark.parametrize(
    ("call", "field"),
    [
        pytest.param(put, "path", id="put"),
        pytest.param(get, "path", id="get"),
        pytest.param(delete, "path", id="delete"),
        pytest.param(list_secrets, "prefix", id="list"),
    ],
)
@pytest.mark.parametrize(("path", "says"), BAD_PATHS)
def test_a_malformed_path(
    cluster: Cluster, caller: Person, call: Callable[[Person, str], object], field: str, path: str, says: str
) -> None:
    """On each RPC that takes one it is refused, and what could do harm in a log or terminal is shown escaped."""
    outcome = check_refused(cluster, caller, lambda person: call(person, path), f"{field}: ", says)
    assert outcome.details.isprintable()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        pytest.param({}, "got none, want 1 to 64", id="no field"),
        pytest.param({f"f{number}": b"" for number in range(65)}, "got 65, want 1 to 64", id="65 fields"),
        pytest.param({"": b"v"}, "got the name '', want 1 to 64 of", id="a field without a name"),
        pytest.param({"n" * 65: b"v"}, "want 1 to 64 of [A-Za-z0-9._-]", id="a name of 65 bytes"),
        pytest.param({"a b": b"v"}, "want 1 to 64 of [A-Za-z0-9._-]", id="a space in a name"),
        pytest.param({"value": bytes(MIB + 1)}, f"want at most {MIB}", id="a value over 1 MiB"),
        pytest.param({"value": bytes(MIB - 12)}, f"{MIB + 1} bytes once encoded", id="one byte too many once encoded"),
        pytest.param(
            {f"f{number}": bytes(MIB // 16) for number in range(64)}, f"want at most {MIB}", id="4 MiB in 64 fields"
        ),
    ],
)
def test_malformed_fields(cluster: Cluster, caller: Person, fields: dict[str, bytes], says: str) -> None:
    """What is no secret's body is refused by its limit."""
    check_refused(cluster, caller, lambda person: put(person, fields=fields), "fields: ", says)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        pytest.param(lambda one: put(one, request_id=bytes(15)), "request_id: got 15 bytes, want 16", id="request id"),
        pytest.param(
            lambda one: put(one, expected_version=1, expected_incarnation=bytes(8)),
            "expected_incarnation: got 8 bytes, want 16",
            id="incarnation",
        ),
        pytest.param(
            lambda one: put(one, expected_incarnation=bytes(16)), "without expected_version", id="half an expectation"
        ),
        pytest.param(lambda one: get(one, version=2**64 - 1), f"version: got {2**64 - 1}, want at most", id="version"),
        pytest.param(
            lambda one: delete(one, versions=[1, 2**64 - 1]), f"versions: got {2**64 - 1}, want at most", id="versions"
        ),
        pytest.param(
            lambda one: delete(one, expected_version=0), "expected_version: got 0, want 1", id="deleting none"
        ),
        pytest.param(lambda one: list_secrets(one, page_size=2**32 - 1), "page_size: got", id="page size"),
        pytest.param(lambda one: apply(one, permissions=[0]), "permissions: got 0, want one of read", id="enum: none"),
        pytest.param(lambda one: apply(one, permissions=[1, 99]), "permissions: got 99, want one of", id="bad enum"),
        pytest.param(
            lambda one: apply(one, permissions=[]), "permissions: got none, want at least", id="no permission"
        ),
        pytest.param(lambda one: apply(one, name="Bad!"), "policy name: got 'Bad!', want 1 to 64 of", id="policy name"),
        pytest.param(lambda one: apply(one, paths=["a/***"]), "want '**' only as a whole segment", id="glob"),
        pytest.param(lambda one: apply(one, paths=["../a"]), f"segment 1 is '..', {SEGMENT}", id="a glob's step up"),
        pytest.param(lambda one: apply(one, spiffe_ids=["root"]), "want spiffe://TRUST-DOMAIN/PATH", id="SPIFFE ID"),
        pytest.param(
            lambda one: one.policies.ApplyPolicies(policies_pb2.ApplyPoliciesRequest()), "policies: got 0", id="none"
        ),
        pytest.param(
            lambda one: one.cluster.Seal(cluster_pb2.SealRequest(reason="x" * 10_000)), "reason: got 10000", id="reason"
        ),
        pytest.param(
            lambda one: one.cluster.Seal(cluster_pb2.SealRequest(reason="a\nb")), "printable", id="lines in a reason"
        ),
    ],
)
def test_other_malformed_arguments(cluster: Cluster, caller: Person, call: Call, says: str) -> None:
    """The field is named, with what it was and what is wanted."""
    check_refused(cluster, caller, call, says)


def test_a_message_over_5_mib(cluster: Cluster, caller: Person) -> None:
    """The transport refuses it with its limit; the connection and the nexus go on."""
    revision = cluster.superuser.get_status().revision
    outcome = read_outcome(lambda: put(caller, fields={"value": bytes(5 * MIB)}))
    assert outcome.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"vs. {5 * MIB}" in outcome.details
    assert cluster.superuser.get_status().revision == revision
    assert read_outcome(caller.get_status).code is grpc.StatusCode.OK


def test_what_is_just_within_the_limits(cluster: Cluster) -> None:
    """The largest body, the longest path, the most fields and segments are taken."""
    superuser = cluster.person("superuser", "bad-input")
    longest = "/".join([*("s" * 31 for _ in range(15)), "s" * 32])
    assert len(longest) == 512
    for path, fields in (
        (longest, {"value": bytes(MIB - 13)}),
        ("s" * 128, {f"f{number}": b"" for number in range(63)} | {"n" * 64: b"v"}),
    ):
        put(superuser, path, fields=fields)
        answer = superuser.secrets.GetSecret(secrets_pb2.GetSecretRequest(path=path))
        assert dict(answer.fields) == fields
