"""An old root key opens nothing any more: with it and its KEKs, every byte of the store's files is tried.

Each search is made before as well, where it has to find: a search that finds nothing anywhere proves nothing.
"""

import os
from dataclasses import dataclass

import pytest

from common.keys.protected import ProtectedMemory
from nexus.keys.operation.record import Depth, Step
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.carving import Loot, find_values, find_wraps, open_escrows, read_files
from tests.nexus.admin.operations.rekeyed import TEAM
from tests.nexus.admin.operations.reshared import NEW_ID, Resharing
from tests.nexus.admin.operations.test_endings import no_entry
from tests.nexus.cluster import SUPERUSERS, FoundCluster
from tests.nexus.conftest import StartNexus
from tests.nexus.core import APP, OPERATOR, NexusCore
from tests.nexus.custodians import KEY
from tests.nexus.failing_store import FailingStore

ROTATE = pytest.mark.parametrize("carved", [Depth.ROTATE], indirect=True)
EMERGENCY = pytest.mark.parametrize("carved", [Depth.EMERGENCY], indirect=True)
BOTH = pytest.mark.parametrize("carved", [Depth.ROTATE, Depth.EMERGENCY], indirect=True)
SIZES = (1, 40, 300, 6_000, 20_000)  # bytes of values: some are alone on their pages, and some span several
VERSIONS = 3


@dataclass
class Carved(Resharing):
    """A nexus with secrets, whose files somebody searches who has keys of it."""

    @property
    def files(self) -> dict[str, bytes]:
        """The store's files as they are now."""
        return read_files(self.core.folder)

    def fill(self) -> None:
        """Write versions of every size, and delete some."""
        for version in range(VERSIONS):
            for number, size in enumerate(SIZES):
                fields = {"value": b"%d" % version + os.urandom(size)}
                self.core.vault.put(APP, f"team/{number}", fields, Expected(), os.urandom(16))
        self.core.vault.delete(APP, "team/2", [1], Expected(), os.urandom(16))

    def take_all(self, memory: ProtectedMemory) -> Loot:
        """Copy what there is now: root key, KEKs, and the DEK of each version."""
        serving = self.core.lifecycle.require_serving()
        with self.cluster.store.read() as reader:
            return Loot.take(serving.root_key, serving.keyring, reader, memory)

    def open_escrows(self) -> set[bytes]:
        """Open what custodians can, whatever its generation."""
        return open_escrows(self.files, KEY.seed, self.cluster.cluster_id, generations=2)

    def rotate(self) -> None:
        """Rotate until keepers have dropped what they had; the keyring job has not begun."""
        self.begin()
        self.drive_to_rest()

    def work_until_retired(self) -> None:
        """Let the keyring job work until the store has no older KEK; what was deleted is not overwritten yet."""
        while len(self.facts.keyring.keks) > 1:
            self.core.job.step()

    def work_to_rest(self) -> None:
        """Let the keyring job do all that there is to do."""
        while self.core.job.step() < 1.0:
            pass


@pytest.fixture
def carved(request: pytest.FixtureRequest, found: FoundCluster, start_nexus: StartNexus) -> Carved:
    """3 of 5 keepers, all full, an escrow that custodians open, and secrets."""
    cluster = found(policies=[SUPERUSERS, TEAM], recovery=KEY.record, seal_escrow=KEY.seal_escrow)
    keepers, store = cluster.keepers(), FailingStore(cluster.store)
    core = start_nexus(keepers, store=store)
    wait_until(lambda: core.pool.count_holders() == 5 and core.states == [State.READY])
    carved = Carved(cluster, keepers, store, core, request.param)
    carved.fill()
    return carved


@ROTATE
def test_what_is_there_is_found(carved: Carved, memory: ProtectedMemory) -> None:
    """Before a rotation every wrap and value opens in the files, and the escrow gives the root key."""
    loot = carved.take_all(memory)
    assert set(find_wraps(carved.files, loot)) == {
        "keyring key 1 opens a wrap in nexus.db-wal",
        "KEK 2 opens a wrap in nexus.db-wal",
    }
    assert carved.store.scrub(seconds=10)
    files, versions = carved.files, VERSIONS * len(SIZES)
    assert sorted(find_wraps(files, loot)) == [
        *["KEK 2 opens a wrap in nexus.db"] * (versions + 1),  # and the canary
        "keyring key 1 opens a wrap in nexus.db",
    ]
    assert len(find_values(files, loot)) == len(loot.deks) == versions
    assert carved.open_escrows() == {carved.cluster.root_key}


@BOTH
def test_what_only_the_old_root_key_opened_is_gone_when_it_is_settled(carved: Carved, memory: ProtectedMemory) -> None:
    """Just after the flip both escrows open; when it is settled and scrubbed, that of the old key is in no file."""
    loot = carved.take_all(memory)
    carved.begin()
    carved.drive_to(Step.FLIPPED)
    assert carved.open_escrows() == {carved.cluster.root_key, carved.new_root_key}
    assert "keyring key 1 opens a wrap in nexus.db-wal" in find_wraps(carved.files, loot)
    carved.drive_to_rest()
    assert carved.open_escrows() == {carved.new_root_key}
    assert {found.partition(" opens")[0] for found in find_wraps(carved.files, loot)} == {"KEK 2"}


@BOTH
def test_the_old_keys_open_nothing_when_the_job_has_ended(
    carved: Carved, memory: ProtectedMemory, start_nexus: StartNexus
) -> None:
    """Nor do they when another nexus has opened the store. The new ones open every version."""
    loot = carved.take_all(memory)
    carved.rotate()
    carved.work_until_retired()
    assert {found.partition(" opens")[0] for found in find_wraps(carved.files, loot)} == {"KEK 2"}
    carved.work_to_rest()
    check_loot(carved, loot)
    carved.core = start_nexus(carved.keepers, store=carved.store)
    wait_until(lambda: carved.core.lifecycle.state is State.READY)
    check_loot(carved, loot)
    new = carved.take_all(memory)
    assert set(find_wraps(carved.files, new)) >= {f"{key} opens a wrap in nexus.db" for key in new.wrapping}
    assert find_values(carved.files, new) >= {f"the DEK of {name} opens a value in nexus.db" for name in loot.deks}


def check_loot(carved: Carved, loot: Loot) -> None:
    """Try all old keys everywhere; DEKs are the same after a rotation, and new after an emergency."""
    files = carved.files
    assert find_wraps(files, loot) == []
    assert carved.open_escrows() == {carved.new_root_key}
    if carved.depth is Depth.EMERGENCY:
        assert find_values(files, loot) == set()
    else:
        assert len(find_values(files, loot)) == len(loot.deks)


@ROTATE
def test_the_staged_keys_open_nothing_after_an_abort(carved: Carved, memory: ProtectedMemory) -> None:
    """Until then its keyring, its canary and its escrow are there; afterwards the current keys open all they did."""
    loot = carved.take_all(memory)
    carved.begin()
    carved.drive_to(Step.DISTRIBUTED)
    pending = carved.core.lifecycle.require_serving().others.pending
    assert pending is not None
    assert pending.key is not None
    staged = Loot.take_keys(pending.key.root_key, pending.key.keyring)
    opened = {found.partition(" opens")[0] for found in find_wraps(carved.files, staged)}
    assert opened == {"keyring key 2", "KEK 3"} == staged.wrapping.keys()
    assert carved.open_escrows() == {carved.cluster.root_key, carved.new_root_key}
    carved.core.operations.abort(OPERATOR, NEW_ID, "no")
    carved.drive_to_rest()
    assert find_wraps(carved.files, staged) == []
    assert carved.open_escrows() == {carved.cluster.root_key}
    assert len(find_values(carved.files, loot)) == len(loot.deks)


def restart_for_custodians(carved: Carved, start_nexus: StartNexus) -> NexusCore:
    """Start another nexus, to which no keeper gives anything back."""
    for keeper in carved.keepers:
        keeper.is_reachable = False
    carved.core = start_nexus(carved.keepers, store=carved.store)
    return carved.core


def come_to_rest(carved: Carved) -> None:
    """Let keepers answer, and the driver do what is left."""
    for keeper in carved.keepers:
        keeper.is_reachable = True
    carved.drive_to_rest()


@ROTATE
def test_an_unseal_that_ends_a_rotation_leaves_nothing_of_the_old_key(
    carved: Carved, memory: ProtectedMemory, start_nexus: StartNexus
) -> None:
    """The process that flipped died before it was settled, and custodians brought the new key."""
    loot = carved.take_all(memory)
    carved.begin()
    carved.drive_to(Step.FLIPPED)
    core = restart_for_custodians(carved, start_nexus)
    assert core.warden.admit(carved.prove_as_custodians(), no_entry)
    assert carved.open_escrows() == {carved.cluster.root_key, carved.new_root_key}
    come_to_rest(carved)
    assert carved.open_escrows() == {carved.new_root_key}
    assert {found.partition(" opens")[0] for found in find_wraps(carved.files, loot)} == {"KEK 2"}


@ROTATE
def test_accepting_an_older_store_leaves_nothing_of_the_old_key(
    carved: Carved, memory: ProtectedMemory, start_nexus: StartNexus
) -> None:
    """It gives the store a new root key at once, without an operation."""
    loot = carved.take_all(memory)
    core = restart_for_custodians(carved, start_nexus)
    carved.keepers[0].remembers = carved.cluster.sign_mark(1, 999, control_revision=99, set_number=2)
    carved.keepers[0].is_reachable = True
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    assert not core.warden.admit(carved.prove_as_custodians(), no_entry)
    meta, _ = carved.cluster.load()
    carved.keepers[0].remembers = None
    assert core.warden.accept(meta.timeline, meta.revision, no_entry, actor="") == 2
    new = bytes(core.lifecycle.require_serving().root_key.view)
    assert carved.open_escrows() == {carved.cluster.root_key, new}
    come_to_rest(carved)
    assert carved.open_escrows() == {new}
    assert {found.partition(" opens")[0] for found in find_wraps(carved.files, loot)} == {"KEK 2"}
