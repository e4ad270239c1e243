"""Deliveries that a keeper process does not take: of each only one thing is wrong, and all the rest is as it should be.

The keeper holds set 7 at x = 3, and after each refusal it holds that and nothing else.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from keeper.v1 import keeper_pb2 as pb
from pilot.dev.provider import IdentityProvider
from tests.kit.authority import Authority
from tests.kit.credentials import certify
from tests.kit.fake_clock import FakeClock
from tests.kit.keepers import CLUSTER_ID, NEXUS_PATH, KeeperProcess, ask_statement, fetch_status, make_put, put_shard
from tests.kit.raw_calls import connect
from tests.kit.refusal import Outcome
from tests.kit.spawn import choose_spawn

pytestmark = pytest.mark.cluster

OTHER_NEXUS_PATH = NEXUS_PATH + "2"
OTHER_CLUSTER = b"d" * 16


def connect_as(keeper: KeeperProcess, ca: Authority, path: str = NEXUS_PATH) -> grpc.Channel:
    credentials = certify(ca, uris=[f"spiffe://{ca.trust_domain}{path}"])
    return connect(keeper.port, credentials, ca, server_name=keeper.server_name)


@pytest.fixture(scope="module")
def holder(
    provider: IdentityProvider, ca: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[KeeperProcess]:
    """A keeper of two nexuses that holds set 7."""
    directory = tmp_path_factory.mktemp("keeper")
    keeper = KeeperProcess(directory, provider, nexuses=(NEXUS_PATH, OTHER_NEXUS_PATH), spawn=choose_spawn())
    try:
        keeper.start()
        with connect_as(keeper, ca) as nexus:
            assert put_shard(nexus, make_put(ask_statement(nexus))).code is grpc.StatusCode.OK
        yield keeper
    finally:
        keeper.close()


@pytest.fixture(scope="module")
def nexus(holder: KeeperProcess, ca: Authority) -> Iterator[grpc.Channel]:
    """The nexus that delivers."""
    with connect_as(holder, ca) as channel:
        yield channel


@pytest.fixture(scope="module")
def other_nexus(holder: KeeperProcess, ca: Authority) -> Iterator[grpc.Channel]:
    """Another one that the keeper accepts as well."""
    with connect_as(holder, ca, OTHER_NEXUS_PATH) as channel:
        yield channel


def check_refused(outcome: Outcome, code: str, reason: str, says: str, nexus: grpc.Channel) -> None:
    """It was refused so, and the keeper holds what it held: the shard of set 7 is still the right one."""
    assert (outcome.code.name, outcome.reason) == (code, reason), outcome
    assert says in outcome.details
    assert [(held.label.set_number, held.x) for held in fetch_status(nexus).sets] == [(7, 3)]
    assert put_shard(nexus, make_put(ask_statement(nexus))).code is grpc.StatusCode.OK


UNKNOWN = "statement is unknown, used or older than 60 s"


@pytest.mark.parametrize(
    "part",
    [
        pytest.param({"nonce": bytes(32)}, id="another nonce"),
        pytest.param({"boot_id": bytes(16)}, id="another boot of the keeper"),
        pytest.param({"issuer": "spiffe://example.test/shardhold/keeper/k2"}, id="another keeper"),
        pytest.param({"audience": f"spiffe://example.test{OTHER_NEXUS_PATH}"}, id="another audience"),
        pytest.param({"purpose": "submit-share"}, id="another purpose"),
    ],
)
def test_a_statement_that_was_not_made(nexus: grpc.Channel, part: dict[str, Any]) -> None:
    """A statement with any part changed is none of this keeper's."""
    outcome = put_shard(nexus, make_put(replace(ask_statement(nexus), **part)))
    check_refused(outcome, "FAILED_PRECONDITION", "STATEMENT", UNKNOWN, nexus)


def test_a_statement_that_was_used(nexus: grpc.Channel) -> None:
    """It is good once, also when that once was refused."""
    right = make_put(ask_statement(nexus))
    assert put_shard(nexus, right).code is grpc.StatusCode.OK
    check_refused(put_shard(nexus, right), "FAILED_PRECONDITION", "STATEMENT", UNKNOWN, nexus)
    wrong = make_put(ask_statement(nexus))
    wrong.x += 1
    assert put_shard(nexus, wrong).code is grpc.StatusCode.INVALID_ARGUMENT
    wrong.x -= 1
    check_refused(put_shard(nexus, wrong), "FAILED_PRECONDITION", "STATEMENT", UNKNOWN, nexus)


def test_a_statement_for_another_audience(nexus: grpc.Channel, other_nexus: grpc.Channel) -> None:
    """One nexus cannot deliver on what another was told, though the keeper accepts both."""
    outcome = put_shard(nexus, make_put(ask_statement(other_nexus)))
    check_refused(outcome, "FAILED_PRECONDITION", "STATEMENT", "statement is for another caller", nexus)


def test_a_statement_for_another_cluster(nexus: grpc.Channel) -> None:
    """It delivers no shard of this one."""
    outcome = put_shard(nexus, make_put(ask_statement(nexus, cluster_id=OTHER_CLUSTER)))
    check_refused(outcome, "FAILED_PRECONDITION", "STATEMENT", "statement is for another caller, cluster", nexus)


@pytest.mark.needs("faketime")
def test_a_statement_that_is_too_old(provider: IdentityProvider, ca: Authority, tmp_path: Path) -> None:
    """After 60 s of the keeper's own clock its one-shot key is gone; before that it is good."""
    clock = FakeClock(tmp_path / "clock", sets_monotonic=True)
    keeper = KeeperProcess(tmp_path, provider)
    try:
        keeper.start(clock.variables)
        with connect_as(keeper, ca) as nexus:
            early, late = ask_statement(nexus), ask_statement(nexus)
            clock.set(20)
            assert put_shard(nexus, make_put(early)).code is grpc.StatusCode.OK
            clock.set(61)
            outcome = put_shard(nexus, make_put(late))
            check_refused(outcome, "FAILED_PRECONDITION", "STATEMENT", UNKNOWN, nexus)
    finally:
        keeper.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"number": 6}, "set 6 of timeline 1 is not newer than set 7", id="an older set"),
        pytest.param({"number": 9, "timeline": 0}, "set 9 of timeline 0 is not newer", id="an older timeline"),
        pytest.param({"genesis": b"h" * 32}, "this keeper serves", id="another genesis"),
        pytest.param({"x": 4}, "another shard or label of this set is held", id="another x of the set that is held"),
        pytest.param({"seed": b"s"}, "another shard or label of this set is held", id="another shard of that set"),
        pytest.param({"timeline": 2}, "another shard or label of this set is held", id="that set in another timeline"),
        pytest.param(
            {"number": 9, "current_number": 8}, "the store's current set is not held", id="not before the current set"
        ),
        pytest.param({"number": 6, "current_number": None}, "not newer", id="an older set, to who is no member"),
    ],
)
def test_a_shard_in_the_wrong_place(nexus: grpc.Channel, changes: dict[str, Any], says: str) -> None:
    """Delivered as it should be, and refused by the rules of sets."""
    outcome = put_shard(nexus, make_put(ask_statement(nexus), **changes))
    reason = "SET_NOT_NEWER" if "not newer" in says else "WRONG_STATE"
    check_refused(outcome, "FAILED_PRECONDITION", reason, says, nexus)


def test_a_shard_of_another_cluster(nexus: grpc.Channel) -> None:
    """A statement for another cluster does not make a shard of it acceptable."""
    statement = ask_statement(nexus, cluster_id=OTHER_CLUSTER)
    outcome = put_shard(nexus, make_put(statement, cluster_id=OTHER_CLUSTER, number=8))
    said = f"cluster is {OTHER_CLUSTER.hex()}, this keeper serves {CLUSTER_ID.hex()}"
    check_refused(outcome, "FAILED_PRECONDITION", "WRONG_STATE", said, nexus)


def swap_set_id(request: pb.PutShardRequest) -> None:
    request.label.set_id = bytes(16)


def raise_set_number(request: pb.PutShardRequest) -> None:
    request.label.set_number += 1


def raise_x(request: pb.PutShardRequest) -> None:
    request.x += 1


def change_commitment(request: pb.PutShardRequest) -> None:
    request.commitment = bytes(32)


def flip_shard(request: pb.PutShardRequest) -> None:
    request.sealed_shard = request.sealed_shard[:-1] + bytes([request.sealed_shard[-1] ^ 1])


def strip_current_set(request: pb.PutShardRequest) -> None:
    request.current_set_id = b""


def raise_epoch(request: pb.PutShardRequest) -> None:
    request.epoch.timeline, request.epoch.epoch = 1, 9


def lower_format(request: pb.PutShardRequest) -> None:
    request.format = 1


def clear_x(request: pb.PutShardRequest) -> None:
    request.x = 0


def overflow_x(request: pb.PutShardRequest) -> None:
    request.x = 256


NOT_AS_SEALED = "sealed_shard does not open: changed, or sealed for something else"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(swap_set_id, NOT_AS_SEALED, id="a wrong set id"),
        pytest.param(raise_set_number, NOT_AS_SEALED, id="a wrong set number"),
        pytest.param(raise_x, NOT_AS_SEALED, id="a wrong index x"),
        pytest.param(change_commitment, NOT_AS_SEALED, id="a wrong commitment"),
        pytest.param(flip_shard, NOT_AS_SEALED, id="a flipped bit"),
        pytest.param(strip_current_set, NOT_AS_SEALED, id="no current set"),
        pytest.param(raise_epoch, NOT_AS_SEALED, id="another epoch"),
        pytest.param(lower_format, NOT_AS_SEALED, id="the format that binds no epoch"),
        pytest.param(clear_x, "x is 0, want 1 to 255", id="no index x"),
        pytest.param(overflow_x, "x is 256, want 1 to 255", id="an index x that no set has"),
    ],
)
def test_a_delivery_that_was_changed(
    nexus: grpc.Channel, spoil: Callable[[pb.PutShardRequest], None], says: str
) -> None:
    """A delivery with any part changed after it was sealed is refused."""
    request = make_put(ask_statement(nexus), number=8)
    spoil(request)
    check_refused(put_shard(nexus, request), "INVALID_ARGUMENT", "INVALID_ARGUMENT", says, nexus)
