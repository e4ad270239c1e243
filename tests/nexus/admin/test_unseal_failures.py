"""Unseal on a store that fails, or that somebody edited: named, and nothing is lost or left."""

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from common.errors import (
    AuditUnavailableError,
    CorruptRowError,
    DecryptionError,
    IntegrityError,
    OutcomeUnknownError,
    ShardholdError,
    StoreUnavailableError,
    WordsError,
    WrongRootKeyError,
)
from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.old_form import make_first_escrow
from tests.nexus.cluster import count_free, is_wiped, tamper
from tests.nexus.custodians import KEY, OTHER_KEY, Lost, custodian, make_recovery_key, submit

ANN = custodian("ann")


def _edit(kind: str, record: msgspec.Struct) -> Callable[[Path], None]:
    body = records.encode(record)
    return lambda folder: tamper(folder, "UPDATE control SET body = ? WHERE kind = ?", body, kind)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        pytest.param(
            _edit("escrow", make_first_escrow(KEY.record.public_key, os.urandom(1168))),
            "escrow is not the one of the genesis record",
            id="escrow edited",
        ),
        pytest.param(
            _edit("recovery-key", OTHER_KEY.record),
            "recovery key is not the one of the genesis record",
            id="recovery key swapped",
        ),
        pytest.param(
            _edit("recovery-key", records.RecoveryKeyRecord(KEY.record.public_key, 0, KEY.record.shares)),
            "no RecoveryKeyRecord",
            id="no share needed",
        ),
        pytest.param(
            lambda folder: tamper(folder, "DELETE FROM control WHERE kind = 'escrow'"),
            "escrow/1 is missing",
            id="no escrow",
        ),
        pytest.param(
            lambda folder: tamper(folder, "DELETE FROM control WHERE kind = 'recovery-key'"),
            "recovery-key/current is missing",
            id="no recovery key",
        ),
        pytest.param(
            lambda folder: tamper(folder, "UPDATE control SET body = x'7b7d' WHERE kind = 'genesis'"),
            "no GenesisRecord",
            id="genesis edited",
        ),
        pytest.param(
            lambda folder: tamper(folder, "DELETE FROM control WHERE kind = 'shard-set'"),
            "0 shard sets are current",
            id="no set",
        ),
    ],
)
def test_what_was_tampered_with_is_refused_by_name_before_any_share_is_taken(
    lost: Lost, tmp_path: Path, edit: Callable[[Path], None], why: str
) -> None:
    """Start and progress are refused, so that no custodian types a word for a tampered record."""
    edit(tmp_path)
    with pytest.raises(CorruptRowError, match=why):
        lost.core.unseal.start(ANN)
    with pytest.raises(CorruptRowError, match=why):
        lost.core.unseal.describe(ANN)
    assert lost.core.unseal.count() is None


@pytest.mark.parametrize(
    ("sql", "error", "why"),
    [
        pytest.param("UPDATE control SET body = x'7b7d' WHERE kind = 'canary'", IntegrityError, "canary", id="canary"),
        pytest.param("DELETE FROM control WHERE kind = 'keyring'", IntegrityError, "keyring", id="keyring"),
        pytest.param(
            "UPDATE control SET digest = zeroblob(32) WHERE kind = 'manifest'",
            CorruptRowError,
            "manifest",
            id="manifest",
        ),
        pytest.param("UPDATE meta SET revision = 0", CorruptRowError, "put back", id="revision put back"),
    ],
)
def test_a_key_that_does_not_prove_is_wiped_and_the_last_share_may_come_again(
    lost: Lost, memory: ProtectedMemory, tmp_path: Path, sql: str, error: type[ShardholdError], why: str
) -> None:
    """What does not verify is named; the session stays as it was before that share."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    free = count_free(memory)
    tamper(tmp_path, sql)
    for _ in range(2):
        with pytest.raises(error, match=why):
            lost.submit(session, 2)
        assert lost.core.unseal.count() == (1, 2)
        assert count_free(memory) == free
    assert lost.core.states == []
    lost.core.unseal.reset(ANN, session.session_id)
    lost.core.close()
    assert is_wiped(memory)


def test_an_escrow_of_another_key_proves_nothing(lost: Lost, memory: ProtectedMemory, tmp_path: Path) -> None:
    """Somebody who forges genesis record and escrow alike gets as far as the kcv: cards show the fraud before."""
    escrow = KEY.seal_escrow(os.urandom(32), lost.cluster.cluster_id, 1)
    genesis = replace(lost.cluster.genesis_record, escrow_digest=sha256(escrow).digest())
    _edit("escrow", make_first_escrow(KEY.record.public_key, escrow))(tmp_path)
    _edit("genesis", records.GenesisRecord(genesis.encode()))(tmp_path)
    assert lost.core.unseal.describe(ANN)[0].genesis.fingerprint != lost.cluster.genesis
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    with pytest.raises(WrongRootKeyError):
        lost.submit(session, 2)
    lost.core.unseal.close()
    assert is_wiped(memory)


def test_an_escrow_that_the_shares_do_not_open_is_refused(lost: Lost, tmp_path: Path) -> None:
    """Sealed for another cluster or generation."""
    escrow = KEY.seal_escrow(lost.cluster.root_key, bytes(16), 1)
    genesis = replace(lost.cluster.genesis_record, escrow_digest=sha256(escrow).digest())
    _edit("escrow", make_first_escrow(KEY.record.public_key, escrow))(tmp_path)
    _edit("genesis", records.GenesisRecord(genesis.encode()))(tmp_path)
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    with pytest.raises(DecryptionError):
        lost.submit(session, 2)
    assert lost.core.unseal.count() == (1, 2)


def test_a_lowered_threshold_opens_nothing(lost: Lost, memory: ProtectedMemory, tmp_path: Path) -> None:
    """The opener needs as many as were made; the share is wiped."""
    _edit("recovery-key", records.RecoveryKeyRecord(KEY.record.public_key, 1, KEY.record.shares))(tmp_path)
    free = count_free(memory)
    session = lost.core.unseal.start(ANN)
    with pytest.raises(WordsError, match="got 1 shares, want 2"):
        lost.submit(session, 1)
    assert lost.core.unseal.count() == (0, 1)
    assert count_free(memory) == free


@pytest.mark.parametrize("flag", ["cannot_commit", "cannot_audit", "is_corrupt"])
def test_a_store_that_fails_at_the_commit_takes_the_last_share_again(
    lost: Lost, memory: ProtectedMemory, flag: str
) -> None:
    """Nothing is committed, and no key is kept."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    free, before = count_free(memory), lost.cluster.load()
    setattr(lost.store, flag, True)
    with pytest.raises((StoreUnavailableError, CorruptRowError)):
        lost.submit(session, 2)
    assert (lost.core.unseal.count(), count_free(memory)) == ((1, 2), free)
    assert lost.cluster.load() == before
    assert lost.core.states == []
    setattr(lost.store, flag, False)
    assert lost.submit(session, 2).ready
    lost.core.close()
    assert is_wiped(memory)


def test_a_store_that_cannot_be_read_behind_the_opener_takes_the_last_share_again(
    lost: Lost, memory: ProtectedMemory
) -> None:
    """The candidate is wiped."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    free, last = count_free(memory), lost.prepare(session, 2)
    lost.store.cannot_read = True
    with pytest.raises(StoreUnavailableError):
        last()
    lost.store.cannot_read = False
    assert count_free(memory) == free
    assert lost.submit(session, 2).ready


def test_a_commit_of_unknown_outcome_ends_the_process(lost: Lost, memory: ProtectedMemory) -> None:
    """Only a new start can tell whether the set is there."""
    session = lost.core.unseal.start(ANN)
    lost.submit(session, 1)
    lost.store.forgets_outcome = True
    with pytest.raises(OutcomeUnknownError):
        lost.submit(session, 2)
    assert len(lost.core.failures) == 1
    assert lost.core.states == []
    lost.store.forgets_outcome = False
    lost.core.close()
    assert is_wiped(memory)


def test_nothing_is_taken_while_the_audit_fails(lost: Lost) -> None:
    """What cannot be audited is refused; progress is told all the same."""
    session = lost.core.unseal.start(ANN)
    send = lost.prepare(session, 1)
    with lost.core.audit_failing():
        with pytest.raises(AuditUnavailableError):
            send()
        assert lost.core.unseal.describe(ANN)[1] is not None
    assert lost.core.unseal.count() == (0, 2)


def test_a_forged_recovery_key_opens_nothing_of_this_cluster(
    lost: Lost, memory: ProtectedMemory, tmp_path: Path
) -> None:
    """A forged recovery key whose escrow holds the true key is refused: the manifest knows another genesis record."""
    key = make_recovery_key(1, 1)
    escrow = key.seal_escrow(lost.cluster.root_key, lost.cluster.cluster_id, 1)
    genesis = replace(
        lost.cluster.genesis_record,
        recovery_public_key=key.record.public_key,
        escrow_digest=sha256(escrow).digest(),
    )
    _edit("escrow", make_first_escrow(key.record.public_key, escrow))(tmp_path)
    _edit("genesis", records.GenesisRecord(genesis.encode()))(tmp_path)
    _edit("recovery-key", key.record)(tmp_path)
    session = lost.core.unseal.start(ANN)
    with pytest.raises(CorruptRowError, match="genesis"):
        submit(lost.core, ANN, session, key.shares[0])
    lost.core.unseal.close()
    assert is_wiped(memory)
