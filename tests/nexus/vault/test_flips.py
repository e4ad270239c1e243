"""Calls while the root key and the KEK are replaced: nobody notices anything of it."""

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from common.errors import CorruptRowError, RecoveringError
from common.keys.protected import ProtectedMemory
from nexus.keys.envelope import Place
from nexus.keys.floor import Standing
from nexus.keys.keyring import Keyring
from nexus.keys.opened import Serving
from nexus.keys.root_key import RootKey
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import MadeByRequest, Position, VersionRow, Writer
from nexus.store.rewrapping import Rewrap
from nexus.vault.expected import Expected
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.store.contract import threads

PATH = "team/app/db"
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)


class Flips:
    """A ready nexus whose keys are replaced, as a rotation does: committed, and then swapped in memory."""

    def __init__(self, nexus: NexusCore, store: FailingStore, memory: ProtectedMemory) -> None:
        self.nexus = nexus
        self.store = store
        self.memory = memory

    @property
    def serving(self) -> Serving:
        return self.nexus.lifecycle.require_serving()

    @property
    def keyring(self) -> Keyring:
        return self.serving.keyring

    def put(self, value: bytes, request_id: bytes = b"") -> MadeByRequest:
        return self.nexus.vault.put(APP, PATH, {"value": value}, Expected(), request_id or os.urandom(16))

    def change(self, what: str, request_id: bytes = b"") -> MadeByRequest:
        """Put or patch the next version, or delete or destroy the first one."""
        request_id = request_id or os.urandom(16)
        match what:
            case "put":
                return self.put(b"v", request_id)
            case "patch":
                return self.patch(b"v", request_id)
            case "delete":
                return self.nexus.vault.delete(APP, PATH, [1], Expected(), request_id)
            case _:
                return self.nexus.vault.destroy(APP, PATH, [1], Expected(), request_id)

    def patch(self, value: bytes, request_id: bytes = b"") -> MadeByRequest:
        return self.nexus.vault.patch(APP, PATH, {"value": value}, [], Expected(), request_id or os.urandom(16))

    def get(self, version: int = 0) -> bytes:
        return self.nexus.vault.get(APP, PATH, version).fields["value"]

    def load(self, version: int = 0) -> VersionRow:
        with self.store.read() as reader:
            row = reader.load_version(PATH, version)
        assert row is not None
        return row

    def commit(self, *, keks: int = 0, generations: int = 0, swap: Callable[[], object] = lambda: None) -> None:
        """Commit a flip, and swap nothing but the floor and what *swap* does, before the next change begins."""
        serving = self.serving

        def change(writer: Writer) -> Position:
            meta = writer.load_meta()
            writer.save_meta(
                replace(meta, generation=meta.generation + generations, kek_id=meta.kek_id + keks, epoch=meta.epoch + 1)
            )
            return writer.load_position()._replace(revision=writer.revision)

        def follow(position: Position) -> None:
            serving.floor.raise_to(Standing(position, serving.floor.standing.manifest))
            swap()

        self.store.write(change, alone=True, on_commit=follow)

    def flip_kek(self) -> None:
        """Replace the KEK; the one before stays in the keyring."""
        keyring, old = self.keyring, self.keyring.current_id
        spare = Keyring(self.memory)
        spare.make_kek(old + 1, self.serving.root_key)
        keyring._keks |= spare._keks
        self.commit(keks=1, swap=lambda: setattr(keyring, "current_id", old + 1))

    def make_root_key(self) -> RootKey:
        """Make the root key of the next generation."""
        buffer = self.memory.allocate(32)
        buffer.fill_random()
        serving = self.serving
        generation = serving.root_key.generation + 1
        return RootKey(buffer, cluster_id=serving.cluster_id, generation=generation, memory=self.memory)

    def swap_root_key(self, new: RootKey) -> None:
        old = self.serving.root_key
        self.serving.root = replace(self.serving.root, root_key=new)
        old.release()

    def rewrap(self) -> None:
        """Bring all rows to the current KEK, as the keyring job does."""
        made, listed = self.rewrap_some()
        assert made == listed

    def rewrap_some(self) -> tuple[int, int]:
        """Do so with the rows that are still there; return how many were re-wrapped, and how many listed."""
        keyring = self.keyring
        with self.store.read() as reader:
            rows = reader.list_outdated(keyring.current_id, limit=100)
        rewraps = []
        for row in rows:
            aad = Place(self.serving.cluster_id, row.path, row.incarnation, row.version).bind(row.dek_id)
            with keyring.scratch.allocate(32) as dek:
                keyring.unwrap_dek(row.wrapped_dek, row.kek_id, aad, into=dek.view)
                wrapped = keyring.wrap_dek(dek.view, keyring.current_id, aad)
            rewraps.append(Rewrap(row, keyring.current_id, wrapped))
        epoch = self.serving.floor.position.epoch
        return self.store.write(lambda writer: writer.rewrap(rewraps, epoch=epoch), counts=False), len(rows)

    def forget(self, kek_id: int) -> None:
        """Wipe a KEK, as when it is retired."""
        self.keyring._keks.pop(kek_id).release()


@pytest.fixture
def flips(make_nexus: MakeNexus, failing: FailingStore, memory: ProtectedMemory) -> Flips:
    """APP may do everything below team/."""
    return Flips(make_nexus(TEAM, store=failing), failing, memory)


class LateKeyring:
    """A keyring that is told of a new KEK late: the first *times* that it is asked, the one before is current."""

    def __init__(self, keyring: Keyring, old: int, times: int) -> None:
        self._keyring = keyring
        self._answers = [old] * times

    @property
    def current_id(self) -> int:
        return self._answers.pop() if self._answers else self._keyring.current_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keyring, name)


CHANGES = ["put", "patch", "delete", "destroy"]


@pytest.mark.parametrize("what", ["put", "patch"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_version_under_a_kek_that_was_replaced_is_made_anew(flips: Flips, times: int, what: str) -> None:
    """It makes one version, under the current KEK; the same request again makes nothing."""
    write = flips.put if what == "put" else flips.patch
    flips.put(b"v1")
    old, request_id = flips.keyring.current_id, os.urandom(16)
    flips.flip_kek()
    late = LateKeyring(flips.keyring, old, times)
    flips.serving.keyring = cast(Keyring, late)
    made = write(b"v2", request_id)
    assert late._answers == []
    assert (made.versions, flips.load().kek_id) == ((2,), old + 1)
    assert write(b"v2", request_id) == made
    assert [flips.get(version) for version in (1, 2, 0)] == [b"v1", b"v2", b"v2"]


def test_a_put_is_not_tried_for_ever_and_its_request_is_free(flips: Flips) -> None:
    """After three times its caller waits; nothing is written, and the request is made when it comes again."""
    old, request_id = flips.keyring.current_id, os.urandom(16)
    flips.flip_kek()
    flips.serving.keyring = cast(Keyring, LateKeyring(flips.keyring, old, 3))
    with pytest.raises(RecoveringError, match="were replaced 3 times"):
        flips.put(b"v", request_id)
    with flips.store.read() as reader:
        assert reader.find_request(APP.spiffe_id, request_id) is None
        assert reader.load_secret(PATH) is None
    assert flips.put(b"v", request_id).versions == (1,)


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_under_a_root_key_that_was_replaced_is_made_anew(flips: Flips, what: str) -> None:
    """Its HMACs are those of the new generation, whatever the change is."""
    flips.put(b"v1")
    request_id, new = os.urandom(16), flips.make_root_key()
    flips.commit(generations=1)

    def swap_at_the_second() -> None:
        flips.store.at_write = lambda: flips.swap_root_key(new)

    flips.store.at_write = swap_at_the_second
    assert flips.change(what, request_id).versions == ((2,) if what in ("put", "patch") else (1,))
    assert flips.store.at_write is None
    with flips.store.read() as reader:
        row = reader.find_request(APP.spiffe_id, request_id)
    assert row is not None
    assert row.generation == 2


def test_requests_of_before_a_flip_are_found_after_it(flips: Flips) -> None:
    """A put that was answered before the root key was replaced makes nothing when it is sent again after that."""
    request_id = os.urandom(16)
    made = flips.put(b"v1", request_id)
    new = flips.make_root_key()
    flips.commit(generations=1, keks=0)
    flips.swap_root_key(new)
    flips.flip_kek()
    flips.rewrap()
    assert flips.put(b"v1", request_id) == made
    assert flips.get() == b"v1"
    assert flips.put(b"v2").versions == (2,)


def test_calls_go_on_while_keks_are_replaced(flips: Flips) -> None:
    """Puts and gets of several callers, beside flips and re-wraps: all succeed, and every value opens at the end."""
    first = flips.keyring.current_id

    def work(name: int) -> None:
        if name == 0:
            for _ in range(8):
                flips.flip_kek()
                flips.rewrap()
            return
        path = f"team/{name}"
        for number in range(1, 31):
            made = flips.nexus.vault.put(APP, path, {"value": b"%d" % number}, Expected(), os.urandom(16))
            assert made.versions == (number,)
            assert flips.nexus.vault.get(APP, path, 0).fields == {"value": b"%d" % number}

    with threads(work, 4):
        pass
    flips.rewrap()
    with flips.store.read() as reader:
        assert reader.count_by_kek() == {first + 8: 90}
    for name in (1, 2, 3):
        for number in range(1, 31):
            assert flips.nexus.vault.get(APP, f"team/{name}", number).fields == {"value": b"%d" % number}


def test_a_patch_of_a_row_whose_kek_is_gone_makes_no_version(flips: Flips) -> None:
    """Inside a change the keys are those of the moment: it is damage, and no other look helps."""
    flips.put(b"v1")
    old = flips.keyring.current_id
    flips.flip_kek()
    flips.forget(old)
    with pytest.raises(CorruptRowError, match=f"row names KEK {old}, which is not in the keyring"):
        flips.patch(b"v2")
    assert flips.load().version == 1


def test_destroys_and_patches_go_on_while_keks_are_replaced(flips: Flips) -> None:
    """Beside flips and re-wraps: what is destroyed never comes back, and nothing stays under an old KEK."""
    first, is_over = flips.keyring.current_id, threading.Event()

    def work(name: int) -> None:
        if name == 0:
            while not is_over.is_set():
                flips.flip_kek()
                flips.rewrap_some()
            return
        path = f"team/{name}"
        vault = flips.nexus.vault
        vault.put(APP, path, {"a": b"1", "b": b"0"}, Expected(), os.urandom(16))
        for number in range(2, 16):
            patched = vault.patch(APP, path, {"b": b"%d" % number}, [], Expected(), os.urandom(16))
            assert patched.versions == (number,)
            vault.destroy(APP, path, [number - 1], Expected(), os.urandom(16))
            assert vault.get(APP, path, 0).fields == {"a": b"1", "b": b"%d" % number}
        if name == 1:
            is_over.set()

    with threads(work, 3):
        pass
    flips.rewrap_some()
    with flips.store.read() as reader:
        assert reader.count_by_kek() == {flips.keyring.current_id: 2}
        assert reader.load_kept_versions("team/1") == reader.load_kept_versions("team/2") == [15]
    assert flips.keyring.current_id > first


@pytest.mark.parametrize("what", CHANGES)
def test_a_kek_that_somebody_else_wrote_ends_ready(flips: Flips, what: str) -> None:
    """It is no flip of this nexus: nothing is tried again on top of it."""
    flips.put(b"v1")
    flips.store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), kek_id=9)), counts=False)
    with pytest.raises(RecoveringError, match="changed by somebody else: it is at kek id 9"):
        flips.change(what)


def at_reads(store: FailingStore, *steps: Callable[[], object]) -> None:
    """Take one step before each of the next reads."""

    def step() -> None:
        first, *rest = steps
        at_reads(store, *rest)
        first()

    store.at_read = step if steps else None


def test_a_get_that_meets_a_kek_that_is_gone_loads_its_row_once_more(flips: Flips) -> None:
    """Its row was re-wrapped after it had been read."""
    flips.put(b"v1")
    old = flips.keyring.current_id
    flips.flip_kek()

    def rewrap() -> None:
        flips.keyring._keks[old] = kept
        flips.rewrap()
        flips.forget(old)

    kept = flips.keyring._keks.pop(old)
    at_reads(flips.store, lambda: None, rewrap)
    assert flips.get() == b"v1"
    assert flips.store.at_read is None
    assert flips.load().kek_id == old + 1


def test_a_get_under_a_kek_that_never_was_reads_twice_and_says_so(flips: Flips) -> None:
    """It is an error that names the KEK, and no endless loop."""
    flips.put(b"v1")
    old = flips.keyring.current_id
    flips.flip_kek()
    flips.forget(old)
    reads: list[int] = []
    at_reads(flips.store, *[lambda: reads.append(1)] * 5)
    with pytest.raises(CorruptRowError, match=f"row names KEK {old}, which is not in the keyring"):
        flips.get()
    assert len(reads) == 2
    flips.store.at_read = None
