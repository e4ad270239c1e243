"""Shares on their way: sealed to a nexus that proved its SPIFFE ID, over real mTLS, or not sealed at all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.clock import SystemClock
from common.errors import StatementError
from common.keys.sealing import OneShotKey
from common.keys.statement import PUT_SHARD, Statement, sign
from common.keys.words import encode_share, read_share, split
from pilot.connection import Connection
from pilot.custody.unseal_calls import Recovery
from pilot.options import Settings
from shardhold._errors import InvalidArgumentError, WrongStateError
from shardhold.v1.recovery_pb2 import SubmitShareRequest
from tests.kit.authority import Authority
from tests.kit.patience import at_most
from tests.kit.played_nexus import CLUSTER_ID, CUSTODIAN_PATH, GENESIS, NEXUS_PATH, SESSION_ID, PlayedNexus

SHARES = split(bytes(32), 2, 3)
NEXUS_ID = f"spiffe://example.test{NEXUS_PATH}"


def open_recovery(connection: Connection, nexus_id: str | None = None) -> Recovery:
    return Recovery(connection, nexus_id=nexus_id, clock=SystemClock(), timeout=at_most(10))


@pytest.fixture
def connection(nexus: PlayedNexus, svid_dir: Path) -> Iterator[Connection]:
    with Connection(Settings(address=nexus.address, svid_dir=svid_dir)) as connection:
        yield connection


def submit(recovery: Recovery, words: str = SHARES[0]) -> Any:
    return recovery.submit(read_share(words), cluster_id=CLUSTER_ID, session_id=SESSION_ID, genesis=GENESIS)


@pytest.mark.parametrize("nexus_id", [None, NEXUS_ID], ids=["any nexus of ours", "exactly this one"])
def test_share_arrives_sealed(nexus: PlayedNexus, connection: Connection, nexus_id: str | None) -> None:
    """The nexus opens what was sealed to its statement; the request contains nothing of the words."""
    answer = submit(open_recovery(connection, nexus_id))
    assert (answer.number, answer.submitted, answer.needed) == (1, 1, 2)
    assert nexus.shares == [SHARES[0]]
    (request,) = nexus.find(SubmitShareRequest)
    assert encode_share(SHARES[0])[:16] not in request.SerializeToString()


def test_each_share_has_a_key_of_its_own(nexus: PlayedNexus, connection: Connection) -> None:
    """Statements, nonces and sealed forms differ, even for the same words."""
    recovery = open_recovery(connection)
    submit(recovery)
    with pytest.raises(WrongStateError, match="submitted before"):
        submit(recovery)
    first, second = nexus.find(SubmitShareRequest)
    assert first.statement_digest != second.statement_digest
    assert first.sealed_share != second.sealed_share


def test_share_of_another_key_is_the_nexuss_to_refuse(connection: Connection) -> None:
    """When the nexus refuses a share, its answer comes as the SDK's error."""
    with pytest.raises(InvalidArgumentError, match="no share of this cluster"):
        submit(open_recovery(connection), split(bytes(32), 3, 3)[0])


def flip(value: bytes) -> bytes:
    return value[:-1] + bytes((value[-1] ^ 1,))


def own_statement(ca: Authority, svid_path: str, **changes: Any) -> Any:
    """Return a bend that substitutes a statement signed by another SVID, or with other contents."""
    svid = ca.issue(svid_path, dns="nexus.shardhold")

    def bend(answer: Any) -> None:
        stated = Statement.decode(answer.statement)
        parts = {
            "cluster_id": stated.cluster_id,
            "audience": stated.audience,
            "purpose": stated.purpose,
            "nonce": stated.nonce,
            "boot_id": stated.boot_id,
            "public_key": OneShotKey().public_bytes,
        }
        signed = sign(**{**parts, **changes}, svid=svid)
        answer.statement, answer.signature = signed.statement, signed.signature
        answer.certificates[:] = signed.certificates

    return bend


OTHER_PURPOSE = {"purpose": PUT_SHARD}
OTHER_CLUSTER = {"cluster_id": b"d" * 16}
OTHER_NONCE = {"nonce": b"n" * 32}
OTHER_AUDIENCE = {"audience": f"spiffe://example.test{CUSTODIAN_PATH}a"}


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        pytest.param("/team/app", {}, "team/app", id="signed by a workload"),
        pytest.param("/shardhold/keeper/k1", {}, "keeper/k1", id="signed by a keeper"),
        pytest.param("/shardhold/nexus/n1/x", {}, "nexus/n1/x", id="signed by something below a nexus"),
        pytest.param("/team/shardhold/nexus/n1", {}, "team/shardhold", id="signed by something that ends like a nexus"),
        pytest.param(NEXUS_PATH, OTHER_PURPOSE, "purpose", id="for another purpose"),
        pytest.param(NEXUS_PATH, OTHER_CLUSTER, "cluster", id="for another cluster"),
        pytest.param(NEXUS_PATH, OTHER_NONCE, "nonce", id="with another nonce"),
        pytest.param(NEXUS_PATH, OTHER_AUDIENCE, "audience", id="for another custodian"),
    ],
)
def test_nothing_is_sealed_for_another_statement(
    nexus: PlayedNexus, connection: Connection, ca: Authority, path: str, changes: dict[str, Any], said: str
) -> None:
    """A server that is not a nexus of this trust domain, or states other than what was asked, gets no share."""
    nexus.bend = own_statement(ca, path, **changes)
    with pytest.raises(StatementError, match=said):
        submit(open_recovery(connection))
    assert not nexus.find(SubmitShareRequest)


def test_nothing_is_sealed_for_another_authority(nexus: PlayedNexus, connection: Connection) -> None:
    """A nexus's SPIFFE ID that another authority issued gets no share."""
    nexus.bend = own_statement(Authority("example.test"), NEXUS_PATH)
    with pytest.raises(StatementError, match="chain does not verify"):
        submit(open_recovery(connection))
    nexus.bend = own_statement(Authority("other.test"), NEXUS_PATH)
    with pytest.raises(StatementError, match="want that of a spiffe://example.test/shardhold/nexus/NAME"):
        submit(open_recovery(connection))
    assert not nexus.find(SubmitShareRequest)


def test_exactly_the_named_nexus_gets_it(nexus: PlayedNexus, connection: Connection) -> None:
    """With --nexus-id, any other nexus of the same trust domain is refused."""
    with pytest.raises(StatementError, match="want exactly"):
        submit(open_recovery(connection, NEXUS_ID + "2"))
    assert not nexus.find(SubmitShareRequest)


def test_a_nexus_elsewhere_in_the_trust_domain_is_named(ca: Authority, svid_dir: Path) -> None:
    """A nexus outside the default path gets a share only when it is named."""
    nexus = PlayedNexus(ca, path="/prod/secrets/nexus-1")
    try:
        with Connection(Settings(address=nexus.address, svid_dir=svid_dir)) as connection:
            with pytest.raises(StatementError, match="--nexus-id"):
                submit(open_recovery(connection))
            assert submit(open_recovery(connection, "spiffe://example.test/prod/secrets/nexus-1")).number == 1
    finally:
        nexus.stop()


@pytest.mark.parametrize("part", ["statement", "signature"])
def test_one_flipped_bit_is_refused(nexus: PlayedNexus, connection: Connection, part: str) -> None:
    """A statement with one flipped bit in it or in its signature is refused."""

    def bend(answer: Any) -> None:
        setattr(answer, part, flip(getattr(answer, part)))

    nexus.bend = bend
    with pytest.raises(StatementError):
        submit(open_recovery(connection))
    assert not nexus.find(SubmitShareRequest)
