"""A rotation with real keys in a real store: the unmodified proof takes what the rules make of the rows."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from common.errors import CorruptRowError, WrongRootKeyError
from common.forms.chain import Link
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.envelope import Place, open_value, seal_value
from nexus.keys.floor import Standing
from nexus.keys.keyring import Keyring
from nexus.keys.opened import Serving, make_canary, prove
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.ending import end_operation
from nexus.keys.operation.evidence import Backup, Holding, NewKey, Proof, Staged
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, Numbers, Step
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.replacing import replace_at_once
from nexus.keys.operation.staging import next_numbers
from nexus.keys.outbox import append_entry, is_authentic_row
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import draw_set
from nexus.store.protocol import ControlRow, Writer
from tests.nexus.cluster import FoundCluster, FoundedCluster, members
from tests.nexus.keys.operation.made import DRIVER, NOW, OPERATION_ID, make_order, make_preflight

PLACE_OF = b"i" * 16


@dataclass
class RowsInMemory:
    """As much of a writer as a manifest needs."""

    revision: int
    rows: list[ControlRow] = field(default_factory=list)

    def save_control(self, row: ControlRow) -> None:
        self.rows.append(row)


class Rotation:
    """Does by hand what a driver does."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.serving = cluster.prove()
        self.keyring = self.serving.keyring
        self.new: bytes = os.urandom(32)
        self.points: list[bytes] = []

    @property
    def facts(self) -> Facts:
        meta, rows = self.cluster.load()
        controls = manifest.verify(meta, rows, self.serving.root_key)
        return read_facts(meta, controls.bodies, controls.damaged)

    @contextmanager
    def new_key(self, generation: int) -> Iterator[RootKey]:
        buffer = self.cluster.protect(self.new)
        key = RootKey(buffer, cluster_id=self.cluster.cluster_id, generation=generation, memory=self.cluster.memory)
        try:
            yield key
        finally:
            key.release()

    def stage(self, numbers: Numbers) -> Staged:
        """Draw the new set, and wrap every KEK under the new root key."""
        with self.new_key(numbers.generation) as key:
            record, points = draw_set(
                key.view,
                members(5),
                threshold=3,
                generation=numbers.generation,
                set_number=numbers.set_number,
                timeline=self.facts.meta.timeline,
                cluster_id=self.cluster.cluster_id,
                memory=self.cluster.memory,
            )
            self.points = [bytes(point.view) for point in points]
            for point in points:
                point.release()
            self.keyring.add_kek(numbers.kek_id)
            keks = [*map(int, self.facts.keyring.keks), numbers.kek_id]
            wraps = {kek_id: self.keyring.wrap_kek(kek_id, key) for kek_id in keks}
            copy = records.EscrowCopy(records.RECOVERY_COPY, hashlib.sha256(bytes(1216)).digest(), b"sealed")
            escrow = records.EscrowRecord((copy,))
            made = NewKey(key.kcv, wraps, escrow, self._make_canary(numbers.kek_id), self.make_link(key).encode())
        pending = records.replace_state(record, records.SetState.PENDING)
        return Staged(pending, numbers.kek_id, made)

    def _make_canary(self, kek_id: int) -> records.CanaryRecord:
        before, self.keyring.current_id = self.keyring.current_id, kek_id
        try:
            return make_canary(self.cluster.cluster_id, self.keyring)
        finally:
            self.keyring.current_id = before

    def make_link(self, key: RootKey) -> Link:
        chain, meta = self.serving.root.chain, self.facts.meta
        copy = records.EscrowCopy(records.RECOVERY_COPY, hashlib.sha256(bytes(1216)).digest(), b"sealed")
        return Link(
            self.cluster.cluster_id,
            chain.seq + 1,
            chain.digest,
            meta.timeline,
            meta.revision + 1,
            meta.control_revision + 1,
            key.generation,
            key.kcv,
            key.public_key,
            chain.recovery_digest,
            records.EscrowRecord((copy,)).digest,
        )

    def sign_link(self, numbers: Numbers) -> bytes:
        with self.new_key(numbers.generation) as key:
            return self.make_link(key).sign(self.serving.root_key.sign)

    def commit(self, change: Change | Refused, successor: RootKey | None = None) -> None:
        """Commit a change with an audit entry; the manifest is that of *successor* from then on, if there is one."""
        assert not isinstance(change, Refused), change
        old, floor = self.serving.root_key, self.serving.floor

        def write(writer: Writer) -> Standing:
            standing = manifest.change(
                writer, old, floor, put=change.put, delete=change.delete, edit=change.edit, successor=successor
            )
            append_entry(writer, successor or old, "nexus-1", b"entry")
            return standing

        self.cluster.store.write(write, alone=True, on_commit=floor.raise_to)

    def prove_new(self, bodies: Mapping[records.Key, bytes], facts: Facts) -> Serving:
        """Prove the new key on rows that are in memory only."""
        rows = RowsInMemory(facts.meta.revision)
        with self.new_key(facts.generation) as key:
            meta = manifest.first_manifest(facts.meta, bodies, key, rows)  # type: ignore[arg-type]
        points = [self.cluster.protect(point) for point in self.points]
        secret = self.cluster.protect(self.new)
        return prove(secret, points, meta=meta, rows=rows.rows, memory=self.cluster.memory)


@pytest.fixture
def rotation(found: FoundCluster) -> Iterator[Rotation]:
    rotation = Rotation(found())
    yield rotation
    rotation.serving.release()


def begin(rotation: Rotation) -> Facts:
    facts = rotation.facts
    staged = rotation.stage(next_numbers(facts, renews_key=True))
    order = make_order(Depth.ROTATE, keepers=tuple(member.name for member in staged.shard_set.members), is_forced=True)
    preflight = make_preflight(reachable=frozenset(order.keepers), backup=Backup(1, NOW))
    change = transitions.prepare(facts, order, staged, preflight, operation_id=OPERATION_ID, driver=DRIVER, at=NOW)
    rotation.commit(change)
    return rotation.facts


def test_the_rehearsal_is_the_production_proof(rotation: Rotation) -> None:
    """On the flip's result in memory, while the store has nothing but rows that are staged."""
    facts = begin(rotation)
    assert facts.operation is not None
    place = Place(rotation.cluster.cluster_id, "team/db", PLACE_OF, 1)
    sealed = seal_value(b"before", place, rotation.keyring)
    link = rotation.sign_link(facts.operation.target)
    flip = transitions.make_flip(facts, facts.operation, link=link, revision=facts.meta.revision + 1, at=NOW)
    assert isinstance(flip, Change)
    proved = rotation.prove_new(flip.apply(facts.bodies), facts.after(flip))
    assert proved.keyring.current_id == facts.operation.target.kek_id
    assert proved.root.chain.seq == 1
    assert open_value(sealed, place, proved.keyring) == b"before"
    proved.release()
    still = rotation.cluster.prove()  # the key of before, on the rows as they are
    assert still.keyring.current_id == facts.kek_id
    still.release()


def test_a_rotation_from_end_to_end(rotation: Rotation) -> None:
    """After the flip the new key opens the store, and the old one opens it no more."""
    facts = begin(rotation)
    record = facts.operation
    assert record is not None
    proof = Proof(record.id, record.target.set_number, Step.PREPARED, DRIVER)
    evidence: dict[str, Any] = {
        "driver": DRIVER,
        "proof": proof,
        "holders": {member.name: Holding(b"b", 0.0) for member in members(5)},
        "at": NOW,
    }
    rotation.commit(transitions.distribute(facts, record.ticket, **evidence))
    facts = rotation.facts
    assert facts.operation is not None
    link, revision = rotation.sign_link(record.target), facts.meta.revision + 1
    flip = transitions.flip(facts, facts.operation.ticket, link=link, revision=revision, **evidence)
    with rotation.new_key(record.target.generation) as key:
        rotation.commit(flip, key)
    with pytest.raises((WrongRootKeyError, CorruptRowError)):
        rotation.cluster.prove()
    meta, rows = rotation.cluster.load()
    assert (meta.generation, meta.kek_id, meta.last_generation) == (2, 3, 2)
    memory = rotation.cluster.memory
    points = [rotation.cluster.protect(point) for point in rotation.points]
    proved = prove(rotation.cluster.protect(rotation.new), points, meta=meta, rows=rows, memory=memory)
    assert proved.root.chain.generation == 2
    with rotation.cluster.store.read() as reader:
        waiting = reader.load_audit("nexus-1", limit=9)
    assert len(waiting) == 3  # of each commit, also of those under the key of before
    assert all(is_authentic_row(proved.root_key, row, meta.timeline) for row in waiting)
    proved.release()


def test_an_abort_leaves_the_store_to_the_key_of_before(rotation: Rotation) -> None:
    facts = begin(rotation)
    assert facts.operation is not None
    rotation.commit(transitions.abort(facts, facts.operation.ticket))
    proved = rotation.cluster.prove()
    assert proved.view.damaged == ()
    assert list(rotation.facts.keyrings) == [1]
    assert end_operation(rotation.facts).is_empty
    proved.release()


def test_an_accepted_store_has_a_new_generation_at_once(rotation: Rotation) -> None:
    facts = begin(rotation)
    numbers = next_numbers(facts, renews_key=True, seen=Numbers(6, 9, 7))
    staged = rotation.stage(numbers)
    assert staged.key is not None
    signed = replace(staged, key=replace(staged.key, link=rotation.sign_link(numbers)))
    change = replace_at_once(facts, signed, actor="alice", reason="accepted", revision=facts.meta.revision + 1, at=NOW)
    assert isinstance(change, Change)
    proved = rotation.prove_new(change.apply(facts.bodies), facts.after(change))
    assert proved.root.root_key.generation == 7
    assert proved.keyring.current_id == 8
    proved.release()


def test_a_kek_is_added_without_becoming_current(memory: ProtectedMemory) -> None:
    keyring = Keyring(memory)
    keyring.add_kek(5)
    assert keyring.current_id == 0
    keyring.release()
