"""`nexus.server.keeper_link`: a real keeper over mTLS, and keepers that answer anything but the truth."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from common.clock import SystemClock
from common.errors import (
    BadShardError,
    DeniedError,
    InvalidArgumentError,
    KeeperUnreachableError,
    NotFoundError,
    OverloadedError,
    SetNotNewerError,
    ShardholdError,
    StatementError,
    WrongStateError,
)
from common.forms.chain import MAX_LINKS
from common.forms.delivery import PUT_FORMAT, SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.keys import shamir
from common.keys.protected import Level, ProtectedBuffer, ProtectedMemory
from common.keys.sealing import OneShotKey
from keeper.v1 import keeper_pb2 as pb
from nexus.keepers.link import KeeperLink, KeeperReport, ReportedSet
from nexus.server.keeper_link import GrpcKeeperLink
from pilot.dev.provider import IdentityProvider
from tests.kit.authority import Authority
from tests.kit.chains import make_chain
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.keepers import NEXUS_PATH, KeeperProcess
from tests.kit.marks import MarkMaker
from tests.kit.patience import at_most, patience
from tests.kit.spawn import choose_spawn
from tests.kit.waiting import wait_until
from tests.nexus.server.liar import KEEPER_PATH, Liar

pytestmark = pytest.mark.cluster

TIMEOUT = at_most(10)  # seconds
EPOCH = StoreEpoch(1, 5)
MARKS = MarkMaker()
LABEL = SetLabel(cluster_id=b"c" * 16, genesis=b"g" * 32, timeline=1, generation=2, set_id=b"s" * 16, set_number=7)
AS_CURRENT: Any = {"current_set_id": LABEL.set_id, "epoch": EPOCH, "put_format": PUT_FORMAT}


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority("example.test")


@pytest.fixture(scope="module")
def provider(ca: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[IdentityProvider]:
    with IdentityProvider(tmp_path_factory.mktemp("sockets"), ca, lifetime=timedelta(hours=1)) as provider:
        yield provider


@pytest.fixture
def memory() -> Iterator[ProtectedMemory]:
    memory = ProtectedMemory(lowest=Level.PLAIN)
    yield memory
    memory.wipe()


@pytest.fixture
def keeper(provider: IdentityProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    keeper = KeeperProcess(tmp_path_factory.mktemp("keeper"), provider, spawn=choose_spawn())
    try:
        yield keeper.start()
    finally:
        keeper.close()


Connect = Callable[..., GrpcKeeperLink]


@pytest.fixture
def connect(ca: Authority) -> Iterator[Connect]:
    """Make links, as the nexus n1 unless told otherwise."""
    links: list[GrpcKeeperLink] = []

    def make(port: int, *, path: str = NEXUS_PATH, keeper_path: str = KEEPER_PATH, name: str = "k1") -> GrpcKeeperLink:
        link = GrpcKeeperLink(
            name=name,
            address=f"127.0.0.1:{port}",
            spiffe_id=f"spiffe://example.test{keeper_path}",
            identity=FixedIdentity(ca.issue(path)),
            clock=SystemClock(),
        )
        links.append(link)
        return link

    yield make
    for link in links:
        link.close()


def make_shard(memory: ProtectedMemory, label: SetLabel = LABEL, x: int = 3) -> tuple[ProtectedBuffer, bytes]:
    """Make the shard that belongs to *label*, and its commitment."""
    buffer = memory.allocate(shamir.SHARD_SIZE)
    buffer.view[:] = hashlib.sha256(label.set_id).digest() + bytes((x,))
    return buffer, shamir.commitment(buffer.view, cluster_id=label.cluster_id, set_id=label.set_id)


def put(link: GrpcKeeperLink, memory: ProtectedMemory, label: SetLabel = LABEL, **options: Any) -> bytes:
    shard, commitment = make_shard(memory, label)
    options = {"current_set_id": label.set_id, "put_format": PUT_FORMAT, "epoch": EPOCH, **options}
    with shard:
        return link.put_shard(label, shard, commitment=commitment, timeout=TIMEOUT, **options)


# A true keeper


def test_shard_goes_and_comes_back(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """What was put is reported and fetched as it was, by one boot; after a drop it is gone."""
    link: KeeperLink = connect(keeper.port)
    empty = link.fetch_report(timeout=TIMEOUT)
    assert (empty.cluster_id, empty.genesis, empty.sets) == (b"", b"", ())
    shard, commitment = make_shard(memory)
    boot_id = link.put_shard(LABEL, shard, commitment=commitment, **AS_CURRENT, timeout=TIMEOUT)
    report = link.fetch_report(timeout=TIMEOUT)
    assert (report.boot_id, report.cluster_id, report.genesis) == (boot_id, LABEL.cluster_id, LABEL.genesis)
    assert report.sets == (ReportedSet(LABEL, 3),)
    with memory.allocate(shamir.SHARD_SIZE) as fetched:
        assert link.fetch_shard(LABEL.cluster_id, LABEL.set_id, into=fetched, timeout=TIMEOUT) == boot_id
        assert fetched.view == shard.view
        assert link.drop_set(LABEL.cluster_id, LABEL.set_id, epoch=EPOCH, timeout=TIMEOUT) == boot_id
        with pytest.raises(NotFoundError):
            link.fetch_shard(LABEL.cluster_id, LABEL.set_id, into=fetched, timeout=TIMEOUT)


def test_second_set_names_the_current_one(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """A new set is taken beside the current one, and not before it."""
    link = connect(keeper.port)
    newer = replace(LABEL, set_id=b"t" * 16, set_number=8)
    with pytest.raises(WrongStateError, match="put that first"):
        put(link, memory, newer, current_set_id=LABEL.set_id)
    put(link, memory)
    put(link, memory, newer, current_set_id=LABEL.set_id)
    assert [held.label for held in link.fetch_report(timeout=TIMEOUT).sets] == [LABEL, newer]


def test_a_keeper_joins_by_a_pending_set(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """It is told that it is no member of the current one; its report says that it knows this."""
    link = connect(keeper.port)
    assert link.fetch_report(timeout=TIMEOUT).put_format == PUT_FORMAT
    put(link, memory, current_set_id=b"")
    assert [held.label for held in link.fetch_report(timeout=TIMEOUT).sets] == [LABEL]
    newer = replace(LABEL, set_id=b"t" * 16, set_number=8)
    put(link, memory, newer, current_set_id=LABEL.set_id, put_format=PUT_FORMAT + 1)
    assert len(link.fetch_report(timeout=TIMEOUT).sets) == 2


@pytest.mark.parametrize("epoch", [StoreEpoch(1, 0), StoreEpoch(0, 0), StoreEpoch(2, 1)])
def test_a_shard_is_bound_to_the_epoch_that_is_sent(
    keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory, epoch: StoreEpoch
) -> None:
    """A store of an older program has a timeline and no epoch yet."""
    link = connect(keeper.port)
    put(link, memory, epoch=epoch)
    assert link.fetch_report(timeout=TIMEOUT).epoch == (epoch if epoch.epoch else NO_EPOCH)


def test_mark_goes_and_comes_back(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """None before there is one; then the newest that was put, as it was, also when all sets were dropped."""
    link: KeeperLink = connect(keeper.port)
    assert link.fetch_mark(LABEL.cluster_id, timeout=TIMEOUT) is None
    label = replace(LABEL, genesis=MARKS.genesis)
    shard, commitment = make_shard(memory, label)
    with shard:
        link.put_shard(label, shard, commitment=commitment, **AS_CURRENT, timeout=TIMEOUT)
    for revision in (20, 19):
        link.put_mark(MARKS.make(revision=revision), epoch=EPOCH, timeout=TIMEOUT)
    link.drop_set(label.cluster_id, label.set_id, epoch=EPOCH, timeout=TIMEOUT)
    assert link.fetch_mark(label.cluster_id, timeout=TIMEOUT) == MARKS.make(revision=20)


def test_the_longest_chain_goes_and_comes_back(
    keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory
) -> None:
    """A mark of generation 1,025 fits into every message; the keeper says what it verified, and gets the rest of it."""
    link, known = connect(keeper.port), make_chain(MAX_LINKS - 1).chain.digest  # as the keeper of before had it
    marks = [MarkMaker(chains=make_chain(MAX_LINKS).cut(links)) for links in (MAX_LINKS - 1, MAX_LINKS)]
    put(link, memory, replace(LABEL, genesis=marks[0].genesis))
    for mark in marks:
        assert link.put_mark(mark.make(), epoch=EPOCH, timeout=TIMEOUT, known=known) is None
    assert link.fetch_report(timeout=TIMEOUT).chain_seq == MAX_LINKS
    assert link.fetch_mark(LABEL.cluster_id, timeout=TIMEOUT) == marks[1].make()
    assert link.put_mark(marks[0].make(), epoch=EPOCH, timeout=TIMEOUT) == marks[1].make()


def test_marks_that_a_keeper_does_not_take(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """A mark before a shard or of another genesis is a WrongStateError; one that does not verify is invalid."""
    link = connect(keeper.port)
    with pytest.raises(WrongStateError, match="keeper k1 at .*: nothing is pinned"):
        link.put_mark(MARKS.make(), epoch=EPOCH, timeout=TIMEOUT)
    put(link, memory, replace(LABEL, genesis=MARKS.genesis))
    with pytest.raises(WrongStateError, match="begins at genesis"):
        link.put_mark(MarkMaker(seed=b"b" * 32).make(), epoch=EPOCH, timeout=TIMEOUT)
    with pytest.raises(InvalidArgumentError, match="keeper k1 at .*: rollback mark has a broken signature"):
        link.put_mark(replace(MARKS.make(), signature=bytes(64)), epoch=EPOCH, timeout=TIMEOUT)
    assert link.fetch_mark(LABEL.cluster_id, timeout=TIMEOUT) is None


def test_refusals_carry_the_keepers_words(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """An older set is a WrongStateError in the keeper's words; a wrong commitment too."""
    link = connect(keeper.port)
    put(link, memory)
    with pytest.raises(SetNotNewerError, match="keeper k1 at .*: set 6 .* is not newer"):
        put(link, memory, replace(LABEL, set_id=b"r" * 16, set_number=6))
    shard, _ = make_shard(memory)
    with shard, pytest.raises(WrongStateError, match="commitment"):
        link.put_shard(LABEL, shard, commitment=bytes(32), **AS_CURRENT, timeout=TIMEOUT)


def test_other_nexus_is_denied(keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory) -> None:
    """A nexus that the keeper's configuration does not name gets nothing."""
    link = connect(keeper.port, path="/shardhold/nexus/n2")
    with pytest.raises(DeniedError, match="nexus/n2"):
        link.fetch_report(timeout=TIMEOUT)
    with pytest.raises(DeniedError):
        put(link, memory)


def test_nothing_is_sealed_to_another_spiffe_id(
    keeper: KeeperProcess, connect: Connect, memory: ProtectedMemory
) -> None:
    """A keeper with the right DNS name but another SPIFFE ID than expected is not given a shard, nor believed one."""
    put(connect(keeper.port), memory)
    link = connect(keeper.port, keeper_path="/shardhold/keeper/k1-of-another-cluster")
    with pytest.raises(StatementError, match="want exactly"):
        put(link, memory)
    with memory.allocate(shamir.SHARD_SIZE) as fetched:
        with pytest.raises(BadShardError, match="does not open"):
            link.fetch_shard(LABEL.cluster_id, LABEL.set_id, into=fetched, timeout=TIMEOUT)
        assert bytes(fetched.view) == bytes(shamir.SHARD_SIZE)


def test_other_dns_name_is_not_connected_to(keeper: KeeperProcess, connect: Connect) -> None:
    """A server whose certificate is for another keeper's name is none that answers."""
    with pytest.raises(KeeperUnreachableError):
        connect(keeper.port, name="k2").fetch_report(timeout=TIMEOUT)


def try_report(link: GrpcKeeperLink) -> KeeperReport | None:
    try:
        return link.fetch_report(timeout=1)
    except KeeperUnreachableError:
        return None


def test_keeper_that_is_gone_is_unreachable_and_found_again(
    keeper: KeeperProcess, provider: IdentityProvider, connect: Connect
) -> None:
    """A keeper that ended is unreachable; when it is back the same link finds it, with another boot id."""
    link = connect(keeper.port)
    boot_id = link.fetch_report(timeout=TIMEOUT).boot_id
    keeper.stop()
    with pytest.raises(KeeperUnreachableError, match="keeper k1 at 127.0.0.1"):
        link.fetch_report(timeout=1)
    again = KeeperProcess(keeper.directory, provider, port=keeper.port).start()
    try:
        report = wait_until(lambda: try_report(link), what="the keeper that came back", seconds=30)
        assert report.boot_id != boot_id
    finally:
        again.close()


def test_closed_link_is_unreachable(keeper: KeeperProcess, connect: Connect) -> None:
    """After close, which may be called twice, calls fail as towards a keeper that is gone."""
    link = connect(keeper.port)
    link.fetch_report(timeout=TIMEOUT)
    link.close()
    link.close()
    with pytest.raises(KeeperUnreachableError, match="closed"):
        link.fetch_report(timeout=TIMEOUT)


# A keeper that lies


@pytest.fixture
def liar(ca: Authority, memory: ProtectedMemory) -> Iterator[Liar]:
    liar = Liar(ca, memory)
    yield liar
    liar.server.stop(0)


def change(**fields: Any) -> Callable[[Any], None]:
    """Return a bend that sets fields of the answer; a function is given the old value."""

    def bend(answer: Any) -> None:
        for name, value in fields.items():
            old = getattr(answer, name)
            setattr(answer, name, value(old) if callable(value) else value)

    return bend


def flip(value: bytes) -> bytes:
    return value[:-1] + bytes((value[-1] ^ 1,))


def bend_label(answer: Any) -> None:
    answer.label.set_number += 1


def bend_set(answer: Any) -> None:
    answer.label.set_id = b"t" * 16


@pytest.mark.parametrize(
    ("bend", "error", "words"),
    [
        pytest.param(change(sealed_shard=flip), BadShardError, "does not open", id="one bit of the sealed shard"),
        pytest.param(change(sealed_shard=b""), BadShardError, "does not open", id="no shard"),
        pytest.param(change(sealed_shard=bytes(81)), BadShardError, "does not open", id="zeros"),
        pytest.param(change(sealed_shard=bytes(100_000)), BadShardError, "does not open", id="far too long"),
        pytest.param(change(x=4), BadShardError, "does not open", id="another x"),
        pytest.param(bend_label, BadShardError, "does not open", id="another set number"),
        pytest.param(bend_set, BadShardError, "another set", id="another set"),
        pytest.param(change(boot_id=flip), BadShardError, "does not open", id="another boot id"),
        pytest.param(change(boot_id=b""), WrongStateError, "boot id of 0 bytes", id="no boot id"),
        pytest.param(lambda _: pb.FetchShardResponse(), WrongStateError, "boot id", id="an empty answer"),
        pytest.param(change(sealed_shard=bytes(700_000)), KeeperUnreachableError, "larger than max", id="a flood"),
    ],
)
def test_bent_shards_are_refused(
    liar: Liar,
    connect: Connect,
    memory: ProtectedMemory,
    bend: Callable[[Any], Any],
    error: type[ShardholdError],
    words: str,
) -> None:
    """No shard comes through an answer to FetchShard that a keeper changed in any part."""
    link = connect(liar.port)
    put(link, memory)
    liar.bend = bend
    with memory.allocate(shamir.SHARD_SIZE) as fetched:
        with pytest.raises(error, match=words):
            link.fetch_shard(LABEL.cluster_id, LABEL.set_id, into=fetched, timeout=TIMEOUT)
        assert bytes(fetched.view) == bytes(shamir.SHARD_SIZE)


def own_key(answer: Any) -> None:
    """Replace the stated key by another of the same size, leaving the signature."""
    stated = bytearray(answer.statement)
    at = stated.rindex(b"\x00\x00\x00\x20") + 4
    stated[at : at + 32] = OneShotKey().public_bytes
    answer.statement = bytes(stated)


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(own_key, id="another key under the old signature"),
        pytest.param(change(statement=flip), id="one bit of the statement"),
        pytest.param(change(signature=flip), id="one bit of the signature"),
        pytest.param(change(signature=b""), id="no signature"),
        pytest.param(lambda _: pb.GetSealingKeyResponse(), id="an empty answer"),
        pytest.param(lambda answer: answer.certificates.pop() and None, id="no certificate"),
    ],
)
def test_nothing_is_sealed_for_a_bent_statement(
    liar: Liar, connect: Connect, memory: ProtectedMemory, bend: Callable[[Any], Any]
) -> None:
    """When the statement does not verify, no shard leaves, not even sealed."""
    liar.bend = bend
    with pytest.raises(StatementError):
        put(connect(liar.port), memory)
    assert not liar.sealed


def test_replayed_statement_is_refused(liar: Liar, connect: Connect, memory: ProtectedMemory) -> None:
    """A statement from an earlier call has another nonce: nothing is sealed for it."""
    seen: list[Any] = []

    def replay(answer: Any) -> Any:
        seen.append(answer)
        return seen[0]

    liar.bend = lambda answer: replay(answer) if isinstance(answer, pb.GetSealingKeyResponse) else None
    link = connect(liar.port)
    put(link, memory)
    with pytest.raises(StatementError, match="nonce"):
        put(link, memory)
    assert len(liar.sealed) == 1


@pytest.mark.parametrize(
    ("bend", "words"),
    [
        pytest.param(change(boot_id=b"b" * 15), "boot id of 15 bytes", id="short boot id"),
        pytest.param(change(cluster_id=b"c"), "wrong size", id="short cluster id"),
        pytest.param(change(genesis=b"g" * 33), "wrong size", id="long genesis"),
        pytest.param(
            lambda answer: change(digest=bytes(31))(answer.chain), "names a chain by 31 bytes", id="a chain's digest"
        ),
        pytest.param(lambda answer: answer.sets.extend(17 * [pb.HeldSet()]), "holds 17 sets", id="many sets"),
    ],
)
def test_bent_reports_are_refused(liar: Liar, connect: Connect, bend: Callable[[Any], Any], words: str) -> None:
    """A report of the wrong form is the keeper's fault, named."""
    liar.bend = bend
    with pytest.raises(WrongStateError, match=words):
        connect(liar.port).fetch_report(timeout=TIMEOUT)


def test_a_keeper_is_not_asked_for_ever(liar: Liar, connect: Connect, memory: ProtectedMemory) -> None:
    """Who wants more of a chain after all of it is refused."""
    link = connect(liar.port)
    put(link, memory, replace(LABEL, genesis=MARKS.genesis))
    liar.bend = change(wants_whole_chain=True)
    with pytest.raises(WrongStateError, match="keeper k1 wants more of a chain than there is"):
        link.put_mark(MARKS.make(), epoch=EPOCH, timeout=TIMEOUT)


def change_mark(**fields: Any) -> Callable[[Any], None]:
    return lambda answer: change(**fields)(answer.mark)


@pytest.mark.parametrize(
    "bend",
    [
        pytest.param(lambda _: pb.GetMarkResponse(), id="an empty answer"),
        pytest.param(change_mark(mark=b""), id="no mark"),
        pytest.param(change_mark(mark=bytes(1025)), id="a long mark"),
        pytest.param(change_mark(signature=bytes(63)), id="a short signature"),
        pytest.param(lambda answer: answer.mark.chain.pop() and None, id="no chain"),
        pytest.param(lambda answer: answer.mark.chain.extend(1025 * [b"x"]), id="a long chain"),
        pytest.param(lambda answer: answer.mark.chain.append(bytes(513)), id="a long link"),
    ],
)
def test_bent_marks_are_refused(
    liar: Liar, connect: Connect, memory: ProtectedMemory, bend: Callable[[Any], Any]
) -> None:
    """A mark of the wrong form is the keeper's fault, named; what a mark of the right form says is for the core."""
    link = connect(liar.port)
    put(link, memory, replace(LABEL, genesis=MARKS.genesis))
    link.put_mark(MARKS.make(), epoch=EPOCH, timeout=TIMEOUT)
    liar.bend = change_mark(signature=flip)
    assert link.fetch_mark(LABEL.cluster_id, timeout=TIMEOUT) != MARKS.make()
    liar.bend = bend
    with pytest.raises(WrongStateError, match="keeper k1 gave a rollback mark"):
        link.fetch_mark(LABEL.cluster_id, timeout=TIMEOUT)


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        pytest.param(OverloadedError("x"), KeeperUnreachableError, id="overloaded: later"),
        pytest.param(KeyError("x"), WrongStateError, id="a fault of the keeper"),
        pytest.param(BadShardError("x" * 5000), WrongStateError, id="anything else"),
    ],
)
def test_other_errors_are_mapped(liar: Liar, connect: Connect, raised: Exception, error: type[ShardholdError]) -> None:
    """Every error that a keeper answers becomes one of ours, with little of its text."""

    def bend(answer: Any) -> None:
        raise raised

    liar.bend = bend
    with pytest.raises(error) as caught:
        connect(liar.port).fetch_report(timeout=TIMEOUT)
    assert len(str(caught.value)) < 400


def test_slow_keeper_is_unreachable_in_time(liar: Liar, connect: Connect, memory: ProtectedMemory) -> None:
    """Both calls of a put share one time limit."""
    clock = SystemClock()
    never = threading.Event()

    def bend(answer: Any) -> None:
        never.wait(0.4)

    liar.bend = bend
    started = clock.monotonic()
    shard, commitment = make_shard(memory)
    with shard, pytest.raises(KeeperUnreachableError):
        connect(liar.port).put_shard(LABEL, shard, commitment=commitment, **AS_CURRENT, timeout=0.6)
    assert clock.monotonic() - started < patience(5)
