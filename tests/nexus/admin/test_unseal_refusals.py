"""Unseal, every wrong share and wrong turn: refused alone, by name; the session goes on with what it has."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from common.errors import (
    DeniedError,
    InvalidArgumentError,
    OverloadedError,
    ShardholdError,
    StatementError,
    WordsError,
    WrongStateError,
)
from common.keys import words
from common.keys.protected import ProtectedMemory
from common.keys.statement import LIFETIME_S, Statement
from nexus.access.gate import Caller
from nexus.admin.unseal import MAX_EXCLUDED, SessionView, Submitted
from nexus.lifecycle.states import State
from tests.nexus.cluster import count_free, is_wiped
from tests.nexus.core import APP, AUDITOR, OPERATOR, SUPERUSER
from tests.nexus.custodians import KEY, OTHER_KEY, Lost, ask_key, custodian, seal_share

ANN, BEN, EVE = custodian("ann"), custodian("ben"), custodian("eve")


@dataclass
class Attempt:
    """What a custodian sends; a test changes a part of it."""

    lost: Lost
    session: SessionView
    share: bytes
    statement: Statement
    sealed: bytes = b""
    caller = ANN

    def send(self) -> Submitted:
        sealed = self.sealed or seal_share(self.share, self.statement, self.session)
        return self.lost.core.unseal.submit(self.caller, self.session.session_id, self.statement.digest(), sealed)


def _swap_words(share: bytes, one: int) -> bytes:
    """Swap a word and a later, other one without a look at the checksum: as somebody who goes around pilot."""
    indices = [share[2 * i : 2 * i + 2] for i in range(words.WORDS)]
    two = next(i for i in range(one + 1, words.WORDS) if indices[i] != indices[one])
    indices[one], indices[two] = indices[two], indices[one]
    return b"".join(indices)


def _of_another_cluster(attempt: Attempt) -> None:
    attempt.share = OTHER_KEY.shares[1]


def _of_another_split_of_our_seed(attempt: Attempt) -> None:
    attempt.share = words.encode_share(words.split(KEY.seed, 2, 3)[1])


def _twice(attempt: Attempt) -> None:
    attempt.share = KEY.shares[0]


def _two_words_swapped(attempt: Attempt) -> None:
    attempt.share = _swap_words(KEY.shares[1], 6)


def _one_word_wrong(attempt: Attempt) -> None:
    attempt.share = KEY.shares[1][:40] + bytes([KEY.shares[1][40] ^ 1]) + KEY.shares[1][41:]


def _zeros(attempt: Attempt) -> None:
    attempt.share = bytes(words.WIRE_SIZE)


def _for_another_session(attempt: Attempt) -> None:
    attempt.sealed = seal_share(attempt.share, attempt.statement, replace(attempt.session, session_id=os.urandom(16)))


def _for_another_genesis(attempt: Attempt) -> None:
    attempt.sealed = seal_share(attempt.share, attempt.statement, replace(attempt.session, genesis=os.urandom(32)))


def _for_another_statement(attempt: Attempt) -> None:
    other = ask_key(attempt.lost.core, ANN, attempt.session.session_id)
    attempt.sealed = seal_share(attempt.share, other, attempt.session)


def _to_another_key(attempt: Attempt) -> None:
    other = ask_key(attempt.lost.core, ANN, attempt.session.session_id)
    forged = replace(attempt.statement, public_key=other.public_key)
    attempt.sealed = seal_share(attempt.share, forged, attempt.session)


def _of_another_caller(attempt: Attempt) -> None:
    attempt.statement = ask_key(attempt.lost.core, BEN, attempt.session.session_id)


def _unknown_statement(attempt: Attempt) -> None:
    attempt.statement = replace(attempt.statement, nonce=bytes(32))


def _old_statement(attempt: Attempt) -> None:
    attempt.lost.clock.advance(LIFETIME_S)


def _another_session_named(attempt: Attempt) -> None:
    attempt.session = replace(attempt.session, session_id=os.urandom(16))


def _cut(attempt: Attempt) -> None:
    attempt.sealed = seal_share(attempt.share, attempt.statement, attempt.session)[:-1]


def _too_short(attempt: Attempt) -> None:
    attempt.share = attempt.share[:-2]


def _nothing(attempt: Attempt) -> None:
    attempt.sealed = b"\0"


REFUSALS = [
    pytest.param(_of_another_cluster, WordsError, "no share of this cluster", id="words of another cluster"),
    pytest.param(_of_another_split_of_our_seed, WordsError, "no share of this cluster", id="another split of our seed"),
    pytest.param(_twice, WrongStateError, "share 1 was submitted before", id="the same share twice"),
    pytest.param(_two_words_swapped, WordsError, "no share of this cluster", id="two words swapped"),
    pytest.param(_one_word_wrong, WordsError, "no share of this cluster", id="one word wrong"),
    pytest.param(_zeros, WordsError, "no share of this cluster", id="no words at all"),
    pytest.param(_for_another_session, InvalidArgumentError, "does not open", id="sealed for another session"),
    pytest.param(_for_another_genesis, InvalidArgumentError, "does not open", id="sealed for another genesis"),
    pytest.param(_for_another_statement, InvalidArgumentError, "does not open", id="sealed for another statement"),
    pytest.param(_to_another_key, InvalidArgumentError, "does not open", id="sealed to another key"),
    pytest.param(_of_another_caller, StatementError, "for another caller", id="statement of another caller"),
    pytest.param(_unknown_statement, StatementError, "unknown, used or older", id="statement that nobody made"),
    pytest.param(_old_statement, StatementError, "unknown, used or older", id="statement older than a minute"),
    pytest.param(_another_session_named, WrongStateError, "no such session", id="another session"),
    pytest.param(_cut, InvalidArgumentError, "does not open", id="cut"),
    pytest.param(_too_short, InvalidArgumentError, "does not open", id="one word short"),
    pytest.param(_nothing, InvalidArgumentError, "does not open", id="nothing"),
]


@pytest.mark.parametrize(("spoil", "error", "why"), REFUSALS)
def test_a_wrong_share_is_refused_alone_and_the_session_goes_on(
    lost: Lost, memory: ProtectedMemory, spoil: Callable[[Attempt], None], error: type[ShardholdError], why: str
) -> None:
    """It is wiped, named in the audit by nothing but its reason, and the true shares bring the nexus back."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    attempt = Attempt(lost, session, KEY.shares[1], ask_key(lost.core, ANN, session.session_id))
    free = count_free(memory)
    spoil(attempt)
    with pytest.raises(error, match=why) as caught:
        attempt.send()
    assert count_free(memory) == free
    assert lost.core.unseal.count() == (1, 2)
    entry = lost.core.list_entries()[-1]
    assert (entry.action, entry.outcome, entry.detail) == ("unseal.submit", caught.value.reason, "")
    assert lost.core.lifecycle.state is State.RECOVERING
    assert lost.submit(session, 3, BEN) == Submitted(3, 2, 2, ready=True)
    lost.core.close()
    assert is_wiped(memory)


def test_a_statement_is_good_for_one_use(lost: Lost, memory: ProtectedMemory) -> None:
    """The same message again is refused, whether it was taken or not."""
    session = lost.core.unseal.start(ANN)
    taken, refused = lost.prepare(session, 1), lost.prepare(session, 1)
    taken()
    with pytest.raises(WrongStateError, match="submitted before"):
        refused()
    for send in (taken, refused):
        with pytest.raises(StatementError, match="unknown, used or older"):
            send()
    assert lost.core.unseal.count() == (1, 2)


def test_a_share_from_before_a_reset_does_not_come_into_the_next_session(lost: Lost) -> None:
    """It is bound to the session that it was sealed for."""
    session = lost.core.unseal.start(ANN)
    send = lost.prepare(session, 1)
    lost.core.unseal.reset(ANN, session.session_id)
    following = lost.core.unseal.start(BEN)
    with pytest.raises(WrongStateError, match="no such session"):
        send()
    statement = ask_key(lost.core, ANN, following.session_id)
    sealed = seal_share(KEY.shares[0], statement, session)
    with pytest.raises(InvalidArgumentError, match="does not open"):
        lost.core.unseal.submit(ANN, following.session_id, statement.digest(), sealed)


def test_a_starter_of_the_session_before_does_not_reset_the_next_one(lost: Lost) -> None:
    """He is a stranger to it."""
    session = lost.core.unseal.start(ANN)
    lost.core.unseal.reset(OPERATOR, session.session_id)
    following = lost.core.unseal.start(BEN)
    with pytest.raises(ShardholdError, match="is not allowed"):
        lost.core.unseal.reset(ANN, following.session_id)
    assert lost.core.unseal.count() == (0, 2)


@pytest.mark.parametrize("nonce", [b"", bytes(31), bytes(33)])
def test_a_nonce_of_another_size_is_refused(lost: Lost, nonce: bytes) -> None:
    """Nothing is signed."""
    session = lost.core.unseal.start(ANN)
    with pytest.raises(InvalidArgumentError, match="nonce"):
        lost.core.unseal.state_key(ANN, session.session_id, nonce)


def test_one_caller_has_two_open_statements(lost: Lost) -> None:
    """With a third the oldest of this caller goes, however many it takes, and another caller's stays."""
    session = lost.core.unseal.start(ANN)
    prepared = lost.prepare(session, 1, BEN)
    oldest, older, newest = (lost.prepare(session, 2, EVE) for _ in range(3))
    with pytest.raises(StatementError, match="unknown"):
        oldest()
    assert older().number == 2
    for _ in range(64):
        ask_key(lost.core, EVE, session.session_id)
    with pytest.raises(StatementError, match="unknown"):
        newest()
    assert prepared().ready


def test_open_statements_of_all_callers_are_limited(lost: Lost) -> None:
    """Their places are free again after a minute."""
    session = lost.core.unseal.start(ANN)
    for number in range(128):
        for _ in range(2):
            lost.core.unseal.state_key(custodian(f"p{number}"), session.session_id, bytes(32))
    with pytest.raises(OverloadedError):
        ask_key(lost.core, ANN, session.session_id)
    lost.clock.advance(LIFETIME_S)
    lost.core.unseal.expire()
    lost.submit(session, 1)


@pytest.mark.parametrize("admin", [OPERATOR, SUPERUSER], ids=["operator", "superuser"])
def test_an_excluded_caller_takes_no_part(lost: Lost, admin: Caller) -> None:
    """They get no key, their open ones are forgotten, and they do not reset the session that they started."""
    session = lost.core.unseal.start(EVE)
    prepared = lost.prepare(session, 1, EVE)
    view = lost.core.unseal.exclude(admin, session.session_id, EVE.spiffe_id)
    assert view.excluded == (EVE.spiffe_id,)
    for attempt in (
        prepared,
        lambda: ask_key(lost.core, EVE, session.session_id),
        lambda: lost.core.unseal.reset(EVE, session.session_id),
    ):
        with pytest.raises(DeniedError):
            attempt()
    lost.submit(session, 1, ANN)
    assert lost.submit(session, 2, BEN).ready
    (entry,) = [entry for entry in lost.core.list_entries() if entry.action == "unseal.exclude"]
    assert (entry.actor, entry.detail, entry.outcome) == (admin.spiffe_id, EVE.spiffe_id, "ok")


def test_an_exclusion_ends_with_its_session(lost: Lost) -> None:
    """The share that an excluded caller had submitted counts; in the next session they are a custodian again."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1, EVE)
    lost.core.unseal.exclude(OPERATOR, session.session_id, EVE.spiffe_id)
    assert lost.core.unseal.count() == (1, 2)
    lost.core.unseal.reset(OPERATOR, session.session_id)
    following = lost.core.unseal.start(ANN)
    assert following.excluded == ()
    lost.submit(following, 1, EVE)
    assert lost.submit(following, 2, ANN).ready


def test_who_is_excluded_is_for_them_and_for_who_may_exclude(lost: Lost) -> None:
    """Operators and superusers see all, and everybody else sees whether it is they."""
    session = lost.core.unseal.start(ANN)
    for one in (EVE, BEN):
        lost.core.unseal.exclude(OPERATOR, session.session_id, one.spiffe_id)
    both = (BEN.spiffe_id, EVE.spiffe_id)
    wanted = {OPERATOR: both, SUPERUSER: both, EVE: (EVE.spiffe_id,), ANN: (), AUDITOR: ()}
    for caller, seen in wanted.items():
        view = lost.core.unseal.describe(caller)[1]
        assert view is not None
        assert view.excluded == seen


def test_an_exclusion_is_an_admins_and_of_a_spiffe_id(lost: Lost) -> None:
    """A custodian excludes nobody, a malformed ID is named, and so is a list that has no end."""
    session = lost.core.unseal.start(ANN)
    for caller in (ANN, AUDITOR, APP):
        with pytest.raises(DeniedError, match="needs role operator or superuser"):
            lost.core.unseal.exclude(caller, session.session_id, BEN.spiffe_id)
    for wrong in ("", "eve", "spiffe://", "spiffe://x", "spiffe://x/a b", "spiffe://x/" + "a" * 2048):
        with pytest.raises(InvalidArgumentError, match="spiffe_id"):
            lost.core.unseal.exclude(OPERATOR, session.session_id, wrong)
    with pytest.raises(WrongStateError, match="no such session"):
        lost.core.unseal.exclude(OPERATOR, bytes(16), BEN.spiffe_id)
    for number in range(MAX_EXCLUDED):
        lost.core.unseal.exclude(OPERATOR, session.session_id, f"spiffe://x/{number}")
    lost.core.unseal.exclude(OPERATOR, session.session_id, "spiffe://x/0")
    with pytest.raises(OverloadedError):
        lost.core.unseal.exclude(OPERATOR, session.session_id, BEN.spiffe_id)


def test_the_starter_does_not_throw_away_the_shares_of_others(lost: Lost) -> None:
    """They may reset the session while all shares in it are their own; afterwards an operator or a superuser may."""
    session = lost.core.unseal.start(EVE)
    lost.submit(session, 1, EVE)
    assert lost.core.unseal.reset(EVE, session.session_id) == 1
    session = lost.core.unseal.start(EVE)
    lost.submit(session, 1, ANN)
    with pytest.raises(DeniedError, match="needs role operator or superuser"):
        lost.core.unseal.reset(EVE, session.session_id)
    assert lost.core.unseal.count() == (1, 2)
    assert lost.core.unseal.reset(OPERATOR, session.session_id) == 1
