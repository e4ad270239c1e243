"""`keeper.service`: statements, sealed shards and who may call, without a network and with a clock turned by hand."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import fields

import pytest
from google.protobuf.message import Message

from common.errors import (
    DeniedError,
    InvalidArgumentError,
    MarkError,
    NotFoundError,
    OverloadedError,
    StatementError,
    WrongStateError,
)
from common.forms.delivery import SetLabel, build_fetch_info
from common.forms.mark import SignedMark
from common.keys import shamir
from common.keys.protected import Level, ProtectedMemory
from common.keys.sealing import OneShotKey
from common.keys.statement import PUT_SHARD, Statement, StatementDesk
from common.server.edge import Call
from keeper.service import KeeperService
from keeper.slots import ShardSlots
from keeper.v1 import keeper_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.chains import ChainMaker
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.keepers import CLUSTER_ID as CLUSTER
from tests.kit.keepers import make_put
from tests.kit.manual_clock import ManualClock
from tests.kit.marks import MarkMaker

NEXUS = "spiffe://example.test/shardhold/nexus/n1"
OTHER_NEXUS = "spiffe://example.test/shardhold/nexus/n2"
BOOT_ID = b"b" * 16
AS_NEXUS = Call(NEXUS)
MARKS = MarkMaker(cluster_id=CLUSTER)
Change = Callable[[pb.PutShardRequest], object]


class Bench:
    """A keeper service on its own, and what a nexus sends it."""

    def __init__(self, ca: Authority) -> None:
        self.clock = ManualClock()
        self.memory = ProtectedMemory(lowest=Level.PLAIN)
        self.slots = ShardSlots(self.memory)
        self.svid = ca.issue("/shardhold/keeper/k1", dns="k1.keeper.shardhold")
        self.service = KeeperService(
            self.slots,
            desk=StatementDesk(self.clock, limit=4),
            memory=self.memory,
            identity=FixedIdentity(self.svid),
            boot_id=BOOT_ID,
            nexuses=[NEXUS, OTHER_NEXUS],
        )

    def ask(self, *, cluster_id: bytes = CLUSTER, caller: str = NEXUS) -> Statement:
        """Get a statement, as *caller*."""
        request = pb.GetSealingKeyRequest(cluster_id=cluster_id, purpose=PUT_SHARD, nonce=b"n" * 32)
        return Statement.decode(self.service.get_sealing_key(Call(caller), request).statement)

    def put(self, *, number: int = 7, genesis: bytes = b"g" * 32) -> pb.PutShardRequest:
        request = make_put(self.ask(), number=number, genesis=genesis)
        self.service.put_shard(AS_NEXUS, request)
        return request


@pytest.fixture
def bench(ca: Authority) -> Iterator[Bench]:
    bench = Bench(ca)
    yield bench
    bench.memory.wipe()


def test_shard_goes_in_and_comes_out(bench: Bench) -> None:
    """A shard that was put comes back, sealed to the caller's key and bound to what it is."""
    put = bench.put()
    key = OneShotKey()
    answer = bench.service.fetch_shard(
        AS_NEXUS,
        pb.FetchShardRequest(cluster_id=CLUSTER, set_id=put.label.set_id, public_key=key.public_bytes),
    )
    assert (answer.label, answer.x, answer.boot_id) == (put.label, 3, BOOT_ID)
    info = build_fetch_info(
        SetLabel(*(getattr(answer.label, part.name) for part in fields(SetLabel))),
        x=answer.x,
        boot_id=BOOT_ID,
        keeper_id=bench.svid.spiffe_id,
        nexus_id=NEXUS,
        public_key=key.public_bytes,
    )
    opened = bytearray(shamir.SHARD_SIZE)
    key.open(answer.sealed_shard, info=info, into=memoryview(opened))
    assert opened == hashlib.sha256(put.label.set_id).digest() + b"\x03"


def test_status_says_what_is_held(bench: Bench) -> None:
    """Status is empty at first, then names pin, sets, boot and level."""
    empty = bench.service.get_status(AS_NEXUS, pb.GetStatusRequest())
    assert (empty.boot_id, empty.cluster_id, empty.genesis, list(empty.sets)) == (BOOT_ID, b"", b"", [])
    put = bench.put()
    status = bench.service.get_status(AS_NEXUS, pb.GetStatusRequest())
    assert (status.cluster_id, status.genesis) == (CLUSTER, b"g" * 32)
    assert list(status.sets) == [pb.HeldSet(label=put.label, x=3)]
    assert status.memory_protection == bench.memory.level
    assert status.version


def test_statement_serves_once(bench: Bench) -> None:
    """A PutShard that is sent twice is refused the second time, although it was right."""
    request = bench.put()
    with pytest.raises(StatementError, match="unknown, used"):
        bench.service.put_shard(AS_NEXUS, request)


def test_statement_is_used_up_by_a_failure(bench: Bench) -> None:
    """Nobody gets a second try with one statement."""
    statement = bench.ask()
    wrong = make_put(statement)
    wrong.sealed_shard = bytes(len(wrong.sealed_shard))
    with pytest.raises(InvalidArgumentError, match="does not open"):
        bench.service.put_shard(AS_NEXUS, wrong)
    with pytest.raises(StatementError, match="unknown, used"):
        bench.service.put_shard(AS_NEXUS, make_put(statement))


@pytest.mark.parametrize(
    ("seconds", "is_good"), [pytest.param(59.9, True, id="in time"), pytest.param(60.0, False, id="after 60 s")]
)
def test_statement_lives_60_seconds(bench: Bench, seconds: float, is_good: bool) -> None:
    """A statement is good for 60 s of the keeper's own clock."""
    request = make_put(bench.ask())
    bench.clock.advance(seconds)
    if is_good:
        bench.service.put_shard(AS_NEXUS, request)
    else:
        with pytest.raises(StatementError, match="older than 60 s"):
            bench.service.put_shard(AS_NEXUS, request)


def test_statement_serves_who_asked(bench: Bench) -> None:
    """Another nexus, though allowed to call, cannot use the statement."""
    request = make_put(bench.ask())
    with pytest.raises(StatementError, match="another caller"):
        bench.service.put_shard(Call(OTHER_NEXUS), request)
    assert bench.slots.list_held() == ()


def test_statement_serves_its_cluster(bench: Bench) -> None:
    """A shard of one cluster is not taken for a statement of another."""
    request = make_put(bench.ask(cluster_id=b"d" * 16))
    with pytest.raises(StatementError, match="another caller, cluster"):
        bench.service.put_shard(AS_NEXUS, request)


def test_statements_are_limited(bench: Bench) -> None:
    """Open statements are limited: more are refused until some are used or too old."""
    for _ in range(4):
        bench.ask()
    with pytest.raises(OverloadedError):
        bench.ask()
    bench.clock.advance(60)
    bench.ask()


def flip(field: str, *path: str) -> Change:
    """Return a change of one bit in a field of bytes or a number."""

    def change(request: pb.PutShardRequest) -> None:
        message: Message = request
        for name in path:
            message = getattr(message, name)
        value = getattr(message, field)
        setattr(message, field, value ^ 1 if isinstance(value, int) else value[:-1] + bytes((value[-1] ^ 1,)))

    return change


FLIPS = [
    pytest.param(flip(field.name, "label"), id=f"label.{field.name}") for field in pb.SetLabel.DESCRIPTOR.fields
] + [
    pytest.param(flip(field.name), id=field.name)
    for field in pb.PutShardRequest.DESCRIPTOR.fields
    if field.name not in ("label", "epoch")  # the epoch is what the caller says of itself, not of the shard
]


@pytest.mark.parametrize(
    "is_held", [pytest.param(False, id="to an empty keeper"), pytest.param(True, id="set is held")]
)
@pytest.mark.parametrize("change", FLIPS)
def test_one_flipped_bit_is_refused(bench: Bench, change: Change, is_held: bool) -> None:
    """One changed bit in any field of a PutShard is refused, and what is held stays as it was."""
    if is_held:
        bench.put()
    before = bench.slots.list_held()
    request = make_put(bench.ask())
    change(request)
    with pytest.raises((InvalidArgumentError, WrongStateError, StatementError)):
        bench.service.put_shard(AS_NEXUS, request)
    assert bench.slots.list_held() == before


@pytest.mark.parametrize("bit", range(8 * 8))
def test_every_part_of_a_sealed_shard_is_bound(bench: Bench, bit: int) -> None:
    """One changed bit anywhere in the sealed shard, key, ciphertext or tag, does not open."""
    request = make_put(bench.ask())
    sealed = bytearray(request.sealed_shard)
    sealed[bit * len(sealed) // 64] ^= 1 << bit % 8
    request.sealed_shard = bytes(sealed)
    with pytest.raises(InvalidArgumentError, match="does not open"):
        bench.service.put_shard(AS_NEXUS, request)


def test_older_set_is_refused(bench: Bench) -> None:
    """A set that is older than the one held is refused."""
    bench.put(number=7)
    with pytest.raises(WrongStateError, match="not newer"):
        bench.service.put_shard(AS_NEXUS, make_put(bench.ask(), number=6))


def test_other_shard_of_a_held_set_is_refused(bench: Bench) -> None:
    """The same set with another shard, sealed and committed rightly, is refused; with the same shard it is not."""
    bench.put(number=7)
    with pytest.raises(WrongStateError, match="another shard"):
        bench.service.put_shard(AS_NEXUS, make_put(bench.ask(), number=7, seed=b"x"))
    bench.put(number=7)


def make_mark(signed: SignedMark) -> pb.PutMarkRequest:
    mark = pb.RollbackMark(mark=signed.mark, signature=signed.signature, chain=signed.chain)
    return pb.PutMarkRequest(mark=mark)


def test_mark_goes_in_and_comes_out(bench: Bench) -> None:
    """The newest mark that was put comes back as it was; an older one changes nothing and is answered with it."""
    bench.put(genesis=MARKS.genesis)
    newest = make_mark(MARKS.make(revision=20))
    for request in (make_mark(MARKS.make(revision=10)), newest, newest):
        assert bench.service.put_mark(AS_NEXUS, request) == pb.PutMarkResponse(boot_id=BOOT_ID)
    older = bench.service.put_mark(AS_NEXUS, make_mark(MARKS.make(revision=19)))
    assert older == pb.PutMarkResponse(boot_id=BOOT_ID, newer=newest.mark)
    answer = bench.service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER))
    assert answer == pb.GetMarkResponse(mark=newest.mark, boot_id=BOOT_ID)


def test_mark_and_pin_outlive_the_sets(bench: Bench) -> None:
    """When all sets are dropped, as at a seal, the mark stays and a newer one is still taken."""
    put = bench.put(genesis=MARKS.genesis)
    bench.service.put_mark(AS_NEXUS, make_mark(MARKS.make()))
    bench.service.drop_set(AS_NEXUS, pb.DropSetRequest(cluster_id=CLUSTER, set_id=put.label.set_id))
    ask = pb.GetMarkRequest(cluster_id=CLUSTER)
    assert bench.service.get_mark(AS_NEXUS, ask).mark == make_mark(MARKS.make()).mark
    newer = make_mark(MARKS.make(revision=11))
    bench.service.put_mark(AS_NEXUS, newer)
    assert bench.service.get_mark(AS_NEXUS, ask).mark == newer.mark
    status = bench.service.get_status(AS_NEXUS, pb.GetStatusRequest())
    assert (status.cluster_id, status.genesis, list(status.sets)) == (CLUSTER, MARKS.genesis, [])


def test_the_rest_of_a_chain_is_enough(bench: Bench) -> None:
    """A keeper says which chain it verified; a record that it does not know makes it ask for the whole chain."""
    service, ask = bench.service, pb.GetStatusRequest()
    first, later = (MarkMaker(chains=ChainMaker(cluster_id=CLUSTER).grow(links)) for links in (2, 3))
    bench.put(genesis=first.genesis)
    assert not service.get_status(AS_NEXUS, ask).HasField("chain")
    rest = make_mark(later.make())
    rest.follows = first.chains.chain.digest
    del rest.mark.chain[:3]
    assert service.put_mark(AS_NEXUS, rest) == pb.PutMarkResponse(boot_id=BOOT_ID, wants_whole_chain=True)
    service.put_mark(AS_NEXUS, make_mark(first.make()))
    verified = service.get_status(AS_NEXUS, ask).chain
    assert (verified.seq, verified.digest) == (2, first.chains.chain.digest)
    assert service.put_mark(AS_NEXUS, rest) == pb.PutMarkResponse(boot_id=BOOT_ID)
    assert service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER)).mark == make_mark(later.make()).mark
    assert service.get_status(AS_NEXUS, ask).chain.seq == 3


def test_mark_waits_for_a_pin(bench: Bench) -> None:
    """A keeper without a shard takes no mark; after its first shard it takes only marks of that genesis."""
    with pytest.raises(WrongStateError, match="nothing is pinned"):
        bench.service.put_mark(AS_NEXUS, make_mark(MARKS.make()))
    with pytest.raises(NotFoundError):
        bench.service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER))
    bench.put()
    with pytest.raises(WrongStateError, match="begins at genesis"):
        bench.service.put_mark(AS_NEXUS, make_mark(MARKS.make()))
    with pytest.raises(NotFoundError):
        bench.service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER))


def test_mark_has_to_verify(bench: Bench) -> None:
    """A mark with another's signature is refused, and none is held."""
    bench.put(genesis=MARKS.genesis)
    request = make_mark(MARKS.make())
    request.mark.mark = MARKS.make(revision=2**40).mark
    with pytest.raises(MarkError, match="broken signature"):
        bench.service.put_mark(AS_NEXUS, request)
    with pytest.raises(NotFoundError):
        bench.service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER))


def test_the_highest_epoch_is_told_and_a_lower_one_changes_nothing(bench: Bench) -> None:
    """A nexus that was stopped before a seal gives no shard and no mark, and makes nobody drop anything."""
    service, ask = bench.service, pb.GetStatusRequest()
    assert not service.get_status(AS_NEXUS, ask).HasField("epoch")
    drop = pb.DropSetRequest(cluster_id=CLUSTER, set_id=bytes(16), epoch=pb.StoreEpoch(timeline=1, epoch=99))
    service.drop_set(AS_NEXUS, drop)  # before anything is pinned, it could be another cluster's
    assert not service.get_status(AS_NEXUS, ask).HasField("epoch")

    put = make_put(bench.ask(), genesis=MARKS.genesis)
    put.epoch.timeline, put.epoch.epoch = 1, 4
    service.put_shard(AS_NEXUS, put)
    mark = make_mark(MARKS.make())
    mark.epoch.timeline, mark.epoch.epoch = 1, 5
    service.put_mark(AS_NEXUS, mark)
    drop.set_id = put.label.set_id
    drop.epoch.epoch = 4
    with pytest.raises(WrongStateError, match="has seen timeline 1, epoch 5"):
        service.drop_set(AS_NEXUS, drop)
    assert len(service.get_status(AS_NEXUS, ask).sets) == 1
    drop.epoch.epoch = 6
    assert service.drop_set(AS_NEXUS, drop).dropped
    assert service.get_status(AS_NEXUS, ask).epoch == pb.StoreEpoch(timeline=1, epoch=6)

    again = make_put(bench.ask(), genesis=MARKS.genesis)
    again.epoch.timeline, again.epoch.epoch = 1, 5
    with pytest.raises(WrongStateError, match="has seen timeline 1, epoch 6"):
        service.put_shard(AS_NEXUS, again)
    newer = make_mark(MARKS.make(revision=99))
    newer.epoch.CopyFrom(again.epoch)
    with pytest.raises(WrongStateError, match="has seen timeline 1, epoch 6"):
        service.put_mark(AS_NEXUS, newer)
    status = service.get_status(AS_NEXUS, ask)
    assert (list(status.sets), status.epoch.epoch) == ([], 6)
    held = service.get_mark(AS_NEXUS, pb.GetMarkRequest(cluster_id=CLUSTER))
    assert held.mark == mark.mark


MALFORMED = [
    pytest.param("get_sealing_key", pb.GetSealingKeyRequest(), "cluster_id is 0 bytes", id="GetSealingKey: empty"),
    pytest.param(
        "get_sealing_key",
        pb.GetSealingKeyRequest(cluster_id=CLUSTER, purpose=PUT_SHARD, nonce=b"n" * 31),
        "nonce is 31 bytes",
        id="GetSealingKey: short nonce",
    ),
    pytest.param(
        "get_sealing_key",
        pb.GetSealingKeyRequest(cluster_id=CLUSTER, purpose="submit-share", nonce=b"n" * 32),
        "purpose is 'submit-share'",
        id="GetSealingKey: other purpose",
    ),
    pytest.param("put_shard", pb.PutShardRequest(), "label is missing", id="PutShard: empty"),
    pytest.param("put_shard", pb.PutShardRequest(label=pb.SetLabel()), "label.cluster_id", id="PutShard: empty label"),
    pytest.param("drop_set", pb.DropSetRequest(), "cluster_id is 0 bytes", id="DropSet: empty"),
    pytest.param(
        "drop_set", pb.DropSetRequest(cluster_id=CLUSTER, set_id=b"s" * 17), "set_id is 17 bytes", id="DropSet: long"
    ),
    pytest.param("fetch_shard", pb.FetchShardRequest(), "cluster_id is 0 bytes", id="FetchShard: empty"),
    pytest.param(
        "fetch_shard",
        pb.FetchShardRequest(cluster_id=CLUSTER, set_id=b"s" * 16, public_key=b"k" * 31),
        "public_key is 31 bytes",
        id="FetchShard: short key",
    ),
    pytest.param("put_mark", pb.PutMarkRequest(), "mark is missing", id="PutMark: empty"),
    pytest.param("get_mark", pb.GetMarkRequest(), "cluster_id is 0 bytes", id="GetMark: empty"),
]


@pytest.mark.parametrize(("method", "request_", "words"), MALFORMED)
def test_malformed_requests_name_the_field(bench: Bench, method: str, request_: Message, words: str) -> None:
    """A field of the wrong size is named, with what it was."""
    with pytest.raises(InvalidArgumentError, match=words):
        getattr(bench.service, method)(AS_NEXUS, request_)


@pytest.mark.parametrize("x", [0, 256, 2**32 - 1])
def test_x_has_to_be_a_point(bench: Bench, x: int) -> None:
    """x is 1 to 255."""
    request = make_put(bench.ask())
    request.x = x
    with pytest.raises(InvalidArgumentError, match="want 1 to 255"):
        bench.service.put_shard(AS_NEXUS, request)


def test_key_of_small_order_is_refused(bench: Bench) -> None:
    """A shard is never sealed to a key that everybody could open."""
    put = bench.put()
    request = pb.FetchShardRequest(cluster_id=CLUSTER, set_id=put.label.set_id, public_key=bytes(32))
    with pytest.raises(InvalidArgumentError, match="small order"):
        bench.service.fetch_shard(AS_NEXUS, request)


def test_fetch_and_drop_know_cluster_and_set(bench: Bench) -> None:
    """Another set is not found, another cluster is refused; a dropped set is gone."""
    put = bench.put()
    key = OneShotKey().public_bytes
    with pytest.raises(NotFoundError):
        bench.service.fetch_shard(AS_NEXUS, pb.FetchShardRequest(cluster_id=CLUSTER, set_id=bytes(16), public_key=key))
    with pytest.raises(WrongStateError, match="this keeper serves"):
        bench.service.fetch_shard(
            AS_NEXUS, pb.FetchShardRequest(cluster_id=bytes(16), set_id=bytes(16), public_key=key)
        )
    with pytest.raises(WrongStateError, match="this keeper serves"):
        bench.service.drop_set(AS_NEXUS, pb.DropSetRequest(cluster_id=bytes(16), set_id=put.label.set_id))
    drop = pb.DropSetRequest(cluster_id=CLUSTER, set_id=put.label.set_id)
    assert bench.service.drop_set(AS_NEXUS, drop) == pb.DropSetResponse(boot_id=BOOT_ID, dropped=True)
    assert bench.service.drop_set(AS_NEXUS, drop) == pb.DropSetResponse(boot_id=BOOT_ID, dropped=False)


STRANGERS = [
    "spiffe://example.test/shardhold/nexus/n3",
    "spiffe://example.test/shardhold/nexus/n1/x",
    "spiffe://example.test/shardhold/keeper/k1",
    "spiffe://example.test/shardhold/pilot/role/superuser/ann",
    "spiffe://example.test/team/app",
]


@pytest.mark.parametrize("caller", STRANGERS)
def test_only_configured_nexuses_may_call(bench: Bench, caller: str) -> None:
    """Every RPC is denied to everybody else, before the request is looked at; the denial names caller and RPC."""
    methods = bench.service.list_methods()
    assert {method.name.rpartition("/")[2] for method in methods} == {
        rpc.name for rpc in pb.DESCRIPTOR.services_by_name["KeeperService"].methods
    }
    for method in methods:
        with pytest.raises(DeniedError, match=f"{caller} may not call {method.name.rpartition('/')[2]}"):
            method.handle(Call(caller), method.request())
