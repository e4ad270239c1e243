"""The desk of one-shot keys: each for one use, for a minute, and only so many."""

import threading
from typing import Any

import pytest

from common.errors import DecryptionError, InvalidArgumentError, OverloadedError, StatementError
from common.keys.sealing import OneShotKey, seal
from common.keys.statement import LIFETIME_S, PUT_SHARD, SignedStatement, Statement, StatementDesk, verify
from tests.kit.authority import KEEPER, NEXUS, NOW, Authority
from tests.kit.manual_clock import ManualClock
from tests.kit.patience import at_most, join

ROOT = Authority(at=NOW)
CLUSTER, NONCE, BOOT = bytes(range(16)), bytes(range(32)), bytes(range(16, 32))


def verified(signed: SignedStatement) -> Statement:
    return verify(
        signed,
        roots=[ROOT.certificate],
        cluster_id=CLUSTER,
        issuer=KEEPER,
        audience=NEXUS,
        purpose=PUT_SHARD,
        nonce=NONCE,
        now=NOW,
    )


def issue_at(desk: StatementDesk, **changes: Any) -> SignedStatement:
    asked = {"cluster_id": CLUSTER, "audience": NEXUS, "purpose": PUT_SHARD, "nonce": NONCE, "boot_id": BOOT}
    return desk.issue(**{**asked, "svid": ROOT.forge(), **changes})


def digest_of(signed: SignedStatement) -> bytes:
    return Statement.decode(signed.statement).digest()


def opens(key: OneShotKey, statement: Statement) -> bool:
    sealed = seal(memoryview(b"shard"), recipient=statement.public_key, info=statement.digest())
    into = bytearray(5)
    try:
        key.open(sealed, info=statement.digest(), into=memoryview(into))
    except DecryptionError:
        return False
    return into == b"shard"


def test_desk_keeps_the_key_of_each_statement() -> None:
    """A statement from the desk verifies, and its digest gets the key that opens what was sealed for it."""
    desk = StatementDesk(ManualClock())
    first, second = (verified(issue_at(desk)) for _ in range(2))
    assert first.public_key != second.public_key
    assert len(desk) == 2
    taken, key = desk.take(second.digest())
    assert taken == second
    assert opens(key, second)
    assert not opens(key, second)
    assert opens(desk.take(first.digest())[1], first)
    assert len(desk) == 0


def test_desk_gives_each_key_once() -> None:
    """A digest that is unknown or already used gets nothing."""
    desk = StatementDesk(ManualClock())
    statement = verified(issue_at(desk))
    desk.take(statement.digest())
    for digest in (statement.digest(), bytes(32), b""):
        with pytest.raises(StatementError, match="unknown, used or older"):
            desk.take(digest)


def test_desk_forgets_after_a_minute() -> None:
    """The desk keeps a key for 60 s of the monotonic clock, not a moment more; the private key goes with it."""
    clock = ManualClock()
    desk = StatementDesk(clock)
    early, late, never = (verified(issue_at(desk)) for _ in range(3))
    clock.advance(LIFETIME_S - 0.001)
    _, kept = desk.take(early.digest())
    assert opens(kept, early)
    clock.advance(0.001)
    with pytest.raises(StatementError, match="older than 60 s"):
        desk.take(late.digest())
    assert len(desk) == 0
    fresh = verified(issue_at(desk))
    desk.expire()
    assert len(desk) == 1
    assert desk.take(fresh.digest())[0] == fresh
    with pytest.raises(StatementError):
        desk.take(never.digest())


def test_desk_has_a_limit() -> None:
    """No more than the limit of keys are open; use and time make room."""
    clock = ManualClock()
    desk = StatementDesk(clock, limit=2)
    first = verified(issue_at(desk))
    issue_at(desk)
    with pytest.raises(OverloadedError, match="2 statements are open"):
        issue_at(desk)
    desk.take(first.digest())
    issue_at(desk)
    with pytest.raises(OverloadedError):
        issue_at(desk)
    clock.advance(LIFETIME_S)
    issue_at(desk)
    assert len(desk) == 1


def test_desk_bounds_each_audience() -> None:
    """With one key too many of an audience its oldest goes, and the keys of others stay."""
    desk = StatementDesk(ManualClock(), limit=4, per_audience=2)
    theirs = digest_of(issue_at(desk, audience=KEEPER))
    first, second, third = (verified(issue_at(desk)) for _ in range(3))
    with pytest.raises(StatementError, match="unknown"):
        desk.take(first.digest())
    assert opens(desk.take(second.digest())[1], second)
    assert opens(desk.take(third.digest())[1], third)
    desk.take(theirs)


def test_desk_withdraws_all_keys_of_an_audience() -> None:
    """Their keys are forgotten, and the keys of others stay."""
    desk = StatementDesk(ManualClock(), per_audience=2)
    mine = [verified(issue_at(desk)).digest() for _ in range(2)]
    theirs = digest_of(issue_at(desk, audience=KEEPER))
    desk.withdraw(NEXUS)
    for digest in mine:
        with pytest.raises(StatementError, match="unknown"):
            desk.take(digest)
    desk.take(theirs)


def test_desk_keeps_nothing_of_a_bad_question() -> None:
    """A nonce of the wrong size is the caller's error, an SVID key that cannot sign is ours; neither leaves a key."""
    desk = StatementDesk(ManualClock())
    with pytest.raises(InvalidArgumentError, match="nonce is 3 bytes, want 32"):
        issue_at(desk, nonce=b"123")
    with pytest.raises(StatementError):
        issue_at(desk, svid=ROOT.forge("ed25519"))
    assert len(desk) == 0


def test_desk_never_exceeds_its_limit_under_threads() -> None:
    """Of many callers at once, exactly as many as the limit allows get a statement."""
    desk, outcomes = StatementDesk(ManualClock(), limit=5), list[bool]()
    start = threading.Barrier(12)

    def work() -> None:
        start.wait(at_most(10))
        try:
            issue_at(desk)
        except OverloadedError:
            outcomes.append(False)
        else:
            outcomes.append(True)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, 30)
    assert sum(outcomes) == len(desk) == 5
