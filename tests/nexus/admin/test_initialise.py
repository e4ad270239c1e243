"""Init in two phases: what each step leaves."""

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from common.errors import (
    DecryptionError,
    InvalidArgumentError,
    WrongStateError,
)
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import escrow_info, open_sealed
from nexus.admin.initialise import Confirmed
from nexus.keys import records
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Phase
from nexus.vault.expected import Expected
from tests.nexus.cluster import found, is_wiped, open_store
from tests.nexus.conftest import WaitUntil
from tests.nexus.core import SUPERUSER, NexusCore
from tests.nexus.founder import PUBLIC_KEY, RECOVERY, SEED, answer, begin, confirm, load
from tests.nexus.played_keepers import PlayedKeeper


def test_begin_commits_the_phase_and_nothing_else(core: NexusCore) -> None:
    """Cluster id and burnt numbers are in the store; no row hangs on the root key, which is in memory only."""
    begun = begin(core)
    meta, rows = load(core.store)
    assert (meta.phase, meta.cluster_id) == (Phase.INITIALISING, begun.cluster_id)
    assert (meta.last_init_attempt, meta.last_generation, meta.last_set_number) == (1, 1, 1)
    assert (meta.timeline, meta.last_kek_id) == (0, 0)
    assert rows == {}
    assert core.lifecycle.state is State.INITIALISING
    assert core.states == [State.INITIALISING]
    assert len(answer(begun)) == 32
    assert core.initialisation.step == "attempt 1 waits for its proof"
    assert all(keeper.count("put_shard") == 0 for keeper in core.keepers.values())


def test_confirm_commits_the_cluster_and_fills_the_keepers(core: NexusCore, memory: ProtectedMemory) -> None:
    """All rows verify, shards go out after the commit, and secrets are served."""
    begun = begin(core)
    confirmed = confirm(core, begun)
    assert confirmed == Confirmed(keepers_filled=3, keepers_wanted=3)
    meta, rows = load(core.store)
    assert (meta.phase, meta.timeline, meta.control_revision, meta.sealed) == (Phase.INITIALISED, 1, 1, False)
    assert {kind for kind, _ in rows} == {
        *(
            "genesis",
            "keyring",
            "canary",
            "recovery-key",
            "generation",
            "escrow",
            "shard-set",
            "policy",
            "manifest",
            "audit",
        )
    }
    serving = core.lifecycle.require_serving()
    assert serving.genesis.fingerprint == begun.genesis
    assert serving.genesis.audit_public_key == serving.root_key.public_key
    assert serving.genesis.recovery_public_key == PUBLIC_KEY
    assert serving.recovery == RECOVERY
    record = serving.shard_set.record
    assert [keeper.sets[record.set_id][1][-1] for keeper in core.keepers.values()] == [1, 2, 3]
    assert [policy.name for policy in serving.view.policies.policies] == ["superusers"]
    core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(0), os.urandom(16))
    assert core.initialisation.step is None
    core.pool.stop()
    core.lifecycle.wipe()
    assert is_wiped(memory)


def test_the_escrow_opens_with_the_recovery_seed_to_the_root_key(core: NexusCore, memory: ProtectedMemory) -> None:
    """No other seed opens the escrow, and its hash is in the genesis record."""
    begun = begin(core)
    confirm(core, begun)
    _, rows = load(core.store)
    escrow = records.decode(records.EscrowRecord, rows[records.ESCROW, "1"].body).copies[0].sealed
    info = escrow_info(begun.cluster_id, 1)
    opened = memory.allocate(32)
    opened.view[:] = open_sealed(escrow, SEED, info)
    root_key = RootKey(opened, cluster_id=begun.cluster_id, generation=1, memory=memory)
    root_key.check(records.decode(records.GenerationRecord, rows[records.GENERATION, "1"].body).kcv)
    serving = core.lifecycle.require_serving()
    assert serving.genesis.escrow_digest == hashlib.sha256(escrow).digest()
    root_key.release()
    for seed, other in ((os.urandom(32), info), (SEED, escrow_info(begun.cluster_id, 2))):
        with pytest.raises(DecryptionError):
            open_sealed(escrow, seed, other)


def test_the_next_start_recovers_what_init_made(
    core: NexusCore, tmp_path: Path, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """From the keepers alone, by the production recovery."""
    begun = begin(core)
    confirm(core, begun)
    core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(0), os.urandom(16))
    core.close()
    core.store.close()
    store = open_store(tmp_path)
    again = NexusCore(tmp_path, store, memory, list(core.keepers.values()))
    assert again.warden.list_obstacles() == ["the nexus is recovering"]
    again.pool.start()
    again.warden.start()
    wait_until(lambda: again.states == [State.READY])
    assert again.vault.get(SUPERUSER, "a", 0).fields == {"value": b"v"}
    assert again.lifecycle.require_serving().genesis.fingerprint == begun.genesis
    # Its attempt is not in memory any more. Nobody may be told to destroy the shares that open this cluster.
    with pytest.raises(WrongStateError, match="initialised already.*keep"):
        confirm(again, begun)
    again.close()
    store.close()


def test_a_wrong_answer_keeps_the_attempt(core: NexusCore) -> None:
    """Nothing is committed; the true answer still is taken."""
    begun = begin(core)
    for wrong in (b"", bytes(32), answer(begun)[:31]):
        with pytest.raises(InvalidArgumentError, match="does not match the challenge"):
            confirm(core, begun, wrong)
    assert load(core.store)[0].phase is Phase.INITIALISING
    assert core.states == [State.INITIALISING]
    confirm(core, begun)
    assert core.states == [State.INITIALISING, State.READY]


def test_a_second_begin_voids_the_first(core: NexusCore, memory: ProtectedMemory) -> None:
    """The cluster id stays, the numbers do not come back, and the first answer opens nothing."""
    first = begin(core)
    reply = answer(first)
    second = begin(core)
    assert second.cluster_id == first.cluster_id
    assert second.genesis != first.genesis
    assert second.attempt == 2
    with pytest.raises(WrongStateError, match="attempt 1 is void: destroy its recovery shares"):
        confirm(core, first, reply)
    with pytest.raises(InvalidArgumentError):
        confirm(core, second, reply)
    confirm(core, second)
    record = core.lifecycle.require_serving().shard_set.record
    assert (record.generation, record.set_number) == (2, 2)
    assert core.lifecycle.require_serving().genesis.generation == 2


def test_an_abort_voids_the_attempt(core: NexusCore, memory: ProtectedMemory) -> None:
    """Its root key is wiped; a new attempt may begin."""
    begun = begin(core)
    core.initialisation.abort(SUPERUSER, begun.attempt)
    assert is_wiped(memory)
    assert core.initialisation.step is None
    for call in (lambda: confirm(core, begun), lambda: core.initialisation.abort(SUPERUSER, begun.attempt)):
        with pytest.raises(WrongStateError, match="void"):
            call()
    assert confirm(core, begin(core)).keepers_filled == 3


def test_aborting_another_attempt_leaves_the_present_one(core: NexusCore) -> None:
    """It goes by the number."""
    begin(core)
    second = begin(core)
    with pytest.raises(WrongStateError):
        core.initialisation.abort(SUPERUSER, 1)
    confirm(core, second)


def test_a_restart_voids_the_attempt_and_burns_its_numbers(
    core: NexusCore, tmp_path: Path, memory: ProtectedMemory
) -> None:
    """The cluster id is the same afterwards."""
    begun = begin(core)
    reply = answer(begun)
    core.close()
    core.store.close()
    store = open_store(tmp_path)
    again = NexusCore(tmp_path, store, memory, [PlayedKeeper(f"keeper-{i}") for i in (1, 2, 3)])
    again.pool.start()
    assert again.lifecycle.state is State.INITIALISING
    with pytest.raises(WrongStateError, match="attempt 1 is void: destroy its recovery shares"):
        confirm(again, begun, reply)
    second = begin(again)
    assert (second.attempt, second.cluster_id) == (2, begun.cluster_id)
    confirm(again, second)
    assert again.lifecycle.require_serving().root_key.generation == 2
    again.close()
    store.close()


def test_the_same_confirmation_again_returns_the_same(core: NexusCore) -> None:
    """One whose answer got lost; another one is told that it came too late."""
    begun = begin(core)
    reply = answer(begun)
    first = confirm(core, begun, reply)
    assert confirm(core, begun, reply) == first
    for number, other in ((begun.attempt, bytes(32)), (begun.attempt + 1, reply)):
        with pytest.raises(WrongStateError, match="by another attempt"):
            core.initialisation.confirm(SUPERUSER, number, other, seconds=0)
    assert load(core.store)[0].control_revision == 1
    with pytest.raises(WrongStateError):
        begin(core)


def test_a_store_whose_keepers_serve_a_cluster_gets_no_new_root_key(
    core: NexusCore, tmp_path: Path, memory: ProtectedMemory, wait_until: WaitUntil
) -> None:
    """BeginInit and ConfirmInit are refused: another store may have been lost and be put back. What was begun stays."""
    begun = begin(core)
    keeper = core.keepers["keeper-2"]
    (tmp_path / "other").mkdir()
    with contextlib.closing(open_store(tmp_path / "other")) as store:
        other = found(store, memory)
    keeper.sets = other.keepers()[1].sets
    cluster_id = other.cluster_id
    wait_until(lambda: core.pool.find_serving() == {"keeper-2": cluster_id})
    (obstacle,) = core.warden.list_obstacles()
    assert f"the nexus is initialising, but keeper-2 of the keepers serve cluster {cluster_id.hex()}" in obstacle
    for call in (lambda: begin(core), lambda: confirm(core, begun)):
        with pytest.raises(WrongStateError, match=f"keeper-2 of the keepers serve cluster {cluster_id.hex()}"):
            call()
    keeper.restart()
    wait_until(lambda: not core.pool.find_serving())
    assert confirm(core, begun) == Confirmed(keepers_filled=3, keepers_wanted=3)


def test_confirm_returns_without_a_quorum_when_time_is_up(core: NexusCore) -> None:
    """The cluster is initialised all the same, and keepers are filled as they come."""
    for keeper in core.keepers.values():
        keeper.is_reachable = False
    confirmed = confirm(core, begin(core), seconds=0.05)
    assert confirmed == Confirmed(keepers_filled=0, keepers_wanted=3)
    assert core.lifecycle.state is State.READY
    for keeper in core.keepers.values():
        keeper.is_reachable = True
    assert core.pool.wait_holders(3, seconds=10) == 3
