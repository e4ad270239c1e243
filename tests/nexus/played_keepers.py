"""Keepers that are played: each implements KeeperLink as a true keeper would look through its link."""

import hashlib
import os
import threading
from typing import Final

from common.errors import (
    BadShardError,
    DeniedError,
    InvalidArgumentError,
    KeeperTooOldError,
    KeeperUnreachableError,
    NotFoundError,
    SetNotNewerError,
    WrongStateError,
)
from common.forms.delivery import PUT_FORMAT, UNBOUND_FORMAT, SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from common.keys import shamir
from common.keys.protected import ProtectedBuffer
from nexus.keepers.link import KeeperReport, ReportedSet
from tests.kit.patience import patiently

DEADLINE_S: Final = 20.0  # no test waits longer for another thread


class PlayedKeeper:
    """An honest keeper until told otherwise. Thread-safe, as every link."""

    def __init__(self, name: str) -> None:
        self.boot_id = os.urandom(16)
        self.sets: dict[bytes, tuple[SetLabel | None, bytes]] = {}
        self.is_reachable = True
        self.accepts = True  # accepts this nexus
        self.lies = False  # gives back a shard with one bit flipped
        self.gives_garbage = False  # what it gives back does not open
        self.pretends = False  # says that it holds whatever it was given, but gives nothing
        self.refusal = ""  # why it takes no shard
        self.is_newer_held = False  # it held a newer set than any that it is given
        self.put_format = PUT_FORMAT
        self.puts: list[tuple[bytes, bytes, int]] = []  # set id, the current set named, and format, of each put
        self.mark_refusal = ""  # why it takes no mark
        self.marks: list[SignedMark] = []  # all that it took since its start; it gives back the last one
        self.remembers: SignedMark | None = None  # what it gives back instead
        self.serves = b""  # the cluster that it says it serves when it holds nothing
        self.known: list[bytes] = []  # the digests of chains that were put to it as known
        self.answers_newer: SignedMark | None = None  # the mark that it holds, when it is given an older one
        self.epoch = NO_EPOCH  # the highest that it has seen
        self.go = threading.Event()  # cleared: it answers only when this is set
        self.go.set()
        self.waiting = threading.Event()  # somebody waits for a slow answer
        self.calls: list[str] = []
        self.is_closed = False
        self._name = name
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self._name

    @property
    def address(self) -> str:
        return f"{self._name}.test:8443"

    def count(self, call: str) -> int:
        """Count the calls of one kind so far."""
        with self._lock:
            return self.calls.count(call)

    def restart(self, *, mark: SignedMark | None = None) -> None:
        """End and come back: with a new boot id, and nothing in memory but *mark*."""
        with self._lock:
            self.boot_id = os.urandom(16)
            self.sets.clear()
            self.marks.clear()
            self.epoch = NO_EPOCH
            self.remembers = mark

    def fetch_report(self, *, timeout: float) -> KeeperReport:
        self._answer("fetch_report")
        with self._lock:
            held = tuple(ReportedSet(label, shard[-1]) for label, shard in self.sets.values() if label is not None)
            cluster_id = held[0].label.cluster_id if held else self.serves
            genesis = held[0].label.genesis if held else b""
            chain = self.marks[-1].chain if self.marks else ()
            digest = hashlib.sha256(chain[-1]).digest() if chain else b""
            return KeeperReport(
                self.boot_id,
                cluster_id,
                genesis,
                held,
                "1.2.3",
                3,
                self.epoch,
                max(0, len(chain) - 1),
                digest,
                self.put_format,
            )

    def fetch_shard(self, cluster_id: bytes, set_id: bytes, *, into: ProtectedBuffer, timeout: float) -> bytes:
        self._answer("fetch_shard")
        with self._lock:
            if set_id not in self.sets or self.pretends:
                raise NotFoundError(f"{self._name} holds no such set")
            if self.gives_garbage:
                raise BadShardError("does not open")
            shard = bytearray(self.sets[set_id][1])
            shard[7] ^= 0x10 if self.lies else 0
            into.view[:] = shard
            return self.boot_id

    def put_shard(
        self,
        label: SetLabel,
        shard: ProtectedBuffer,
        *,
        commitment: bytes,
        current_set_id: bytes,
        epoch: StoreEpoch,
        put_format: int,
        timeout: float,
    ) -> bytes:
        self._answer("put_shard")
        with self._lock:
            if put_format == UNBOUND_FORMAT and not current_set_id:
                raise KeeperTooOldError(f"{self._name} is too old")
            self._check_epoch(epoch)
            self.puts.append((label.set_id, current_set_id, put_format))
            if self.is_newer_held:
                raise SetNotNewerError("is not newer")
            if current_set_id not in (b"", label.set_id) and current_set_id not in self.sets:
                raise WrongStateError("the store's current set is not held, put that first")
            if self.refusal:
                raise WrongStateError(self.refusal)
            if shamir.commitment(shard.view, cluster_id=label.cluster_id, set_id=label.set_id) != commitment:
                raise WrongStateError("shard does not match its commitment")
            self.sets[label.set_id] = (label, bytes(shard.view))
            return self.boot_id

    def drop_set(self, cluster_id: bytes, set_id: bytes, *, epoch: StoreEpoch, timeout: float) -> bytes:
        self._answer("drop_set")
        with self._lock:
            self._check_epoch(epoch)
            self.sets.pop(set_id, None)
            return self.boot_id

    def put_mark(self, mark: SignedMark, *, epoch: StoreEpoch, timeout: float, known: bytes = b"") -> SignedMark | None:
        self._answer("put_mark")
        with self._lock:
            if self.mark_refusal:
                raise InvalidArgumentError(self.mark_refusal)
            self._check_epoch(epoch)
            if self.answers_newer is not None:
                return self.answers_newer
            self.marks.append(mark)
            self.known.append(known)
            return None

    def fetch_mark(self, cluster_id: bytes, *, timeout: float) -> SignedMark | None:
        self._answer("fetch_mark")
        with self._lock:
            return self.remembers or (self.marks[-1] if self.marks else None)

    def _check_epoch(self, epoch: StoreEpoch) -> None:
        if epoch.epoch and epoch < self.epoch:
            raise WrongStateError(f"{self._name} has seen epoch {self.epoch.epoch}")
        self.epoch = max(self.epoch, epoch)

    def close(self) -> None:
        self.is_closed = True
        self.go.set()

    def _answer(self, call: str) -> None:
        with self._lock:
            self.calls.append(call)
        if not self.go.is_set():
            self.waiting.set()
            assert patiently(self.go.wait, DEADLINE_S), "nobody let the slow keeper go on"
        if not self.is_reachable:
            raise KeeperUnreachableError(f"{self._name} does not answer")
        if not self.accepts:
            raise DeniedError("is no nexus of this keeper")


def make_absent(name: str) -> PlayedKeeper:
    """Make a keeper that a set names, and that no test has to do with: it never answers."""
    keeper = PlayedKeeper(name)
    keeper.is_reachable = False
    return keeper
