"""A rotation with real keys in a real store: the unmodified proof takes what the rules make of the rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from common.errors import CorruptRowError, WrongRootKeyError
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.envelope import Place, open_value, seal_value
from nexus.keys.floor import Standing
from nexus.keys.keyring import Keyring
from nexus.keys.old_form import make_first_escrow
from nexus.keys.opened import Serving, prove
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.ending import end_operation
from nexus.keys.operation.evidence import Backup, Holding, Proof, Staged
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, Numbers, Step
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.replacing import replace_at_once
from nexus.keys.operation.staging import next_numbers
from nexus.keys.outbox import append_entry, is_authentic_row
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import rehearse
from nexus.keys.shard_set import draw_set
from nexus.keys.succession import KeyPlan, MadeKey, describe_key, make_key, sign_link
from nexus.store.protocol import Writer
from tests.nexus.cluster import NO_RECOVERY, FoundCluster, FoundedCluster, is_wiped, members
from tests.nexus.keys.operation.made import DRIVER, NOW, OPERATION_ID, make_order, make_preflight

PLACE_OF = b"i" * 16


class Rotation:
    """Does by hand what a driver does."""

    def __init__(self, cluster: FoundedCluster) -> None:
        self.cluster = cluster
        self.serving = cluster.prove()
        self.keyring = self.serving.keyring
        self.new, self.link = b"", b""
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
        """Make a new key, and draw its set."""
        cluster = self.cluster
        made = make_key(KeyPlan(numbers, cluster.cluster_id, NO_RECOVERY.public_key), cluster.memory)
        self.new = bytes(made.root_key.view)
        record, points = draw_set(
            made.root_key.view,
            members(5),
            threshold=3,
            generation=numbers.generation,
            set_number=numbers.set_number,
            timeline=self.facts.meta.timeline,
            cluster_id=cluster.cluster_id,
            memory=cluster.memory,
            state=records.SetState.PENDING,
        )
        self.points = [bytes(point.view) for point in points]
        for point in points:
            point.release()
        described = describe_key(
            self.serving, self.facts, MadeKey(made, make_first_escrow(NO_RECOVERY.public_key, b"sealed"))
        )
        self.link = described.link
        made.release()
        return Staged(record, numbers.kek_id, described)

    def sign_link(self) -> bytes:
        """Sign the link of the key that was staged, for the next change."""
        meta = self.facts.meta
        return sign_link(self.link, self.serving, meta, revision=meta.revision + 1)

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

    def prove_new(self, facts: Facts, change: Change) -> Serving:
        """Prove the new key on rows that are in memory only."""
        with self.new_key(change.current.generation) as key:
            meta, rows = rehearse(facts, change, key)
        points = [self.cluster.protect(point) for point in self.points]
        return prove(self.cluster.protect(self.new), points, meta=meta, rows=rows, memory=self.cluster.memory)


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
    link = rotation.sign_link()
    flip = transitions.make_flip(facts, facts.operation, link=link, revision=facts.meta.revision + 1, at=NOW)
    assert isinstance(flip, Change)
    proved = rotation.prove_new(facts, flip)
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
    link, revision = rotation.sign_link(), facts.meta.revision + 1
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
    signed = replace(staged, key=replace(staged.key, link=rotation.sign_link()))
    change = replace_at_once(facts, signed, actor="alice", reason="accepted", revision=facts.meta.revision + 1, at=NOW)
    assert isinstance(change, Change)
    proved = rotation.prove_new(facts, change)
    assert proved.root.root_key.generation == 7
    assert proved.keyring.current_id == 8
    proved.release()


def test_a_new_kek_is_current_once_it_is_taken_over(memory: ProtectedMemory) -> None:
    """The KEKs of before stay."""
    staged = make_key(KeyPlan(Numbers(1, 1, 9), bytes(16), b""), memory)
    root_key = staged.root_key
    old, new = Keyring(memory), Keyring(memory)
    old.make_kek(2, root_key)
    new.open_kek(2, old.wrap_kek(2, root_key), root_key)
    new.make_kek(5, root_key)
    old.take_current(new)
    assert (old.current_id, old.list_keks(), new.list_keks()) == (5, [2, 5], [])
    old.release()
    staged.release()
    assert is_wiped(memory)
