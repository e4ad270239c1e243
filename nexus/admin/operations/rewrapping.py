"""Brings a batch of rows to the current KEK: cryptography first, then a change that takes no revision.

1. Keys are borrowed for the cryptography alone, so a seal waits for neither the disk nor a rest.
2. A change asserts the floor, the epoch of the read, and that its keys were not withdrawn: what a wiped key made or
   refused is not committed.
3. A row that does not open goes into quarantine, in a change of its own; the others go on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from common.clock import Clock, to_micros
from common.errors import ConflictError, CorruptRowError, DecryptionError, RecoveringError
from common.failpoint import around
from nexus.admin.operations.look import Look
from nexus.keys.rewrap import Rewrapper
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Store, Writer
from nexus.store.rewrapping import Reseal, Rewrap, WrappedRow

_MAX_VALUES: Final = 1 << 20  # bytes of ciphertext in one batch, but for its last row

log = structlog.get_logger("keyring-job")


@dataclass(slots=True)
class Batch:
    """What became of some rows, in their order."""

    tried: int = 0  # rows, from the first on
    rewraps: list[Rewrap] = field(default_factory=list)
    reseals: list[Reseal] = field(default_factory=list)
    bad: list[tuple[WrappedRow, str]] = field(default_factory=list)  # with why they do not open


class Rewrapping:
    """Used by one thread."""

    def __init__(self, store: Store, lifecycle: Lifecycle, clock: Clock) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._clock = clock

    def make(self, look: Look, rows: Sequence[WrappedRow], *, renews_deks: bool) -> Batch:
        """Make new wraps for *rows*, or new values with *renews_deks*; of those, perhaps only for the first ones.

        Raises:
            ConflictError: Other keys serve by now.
        """
        batch = Batch()
        with self._lifecycle.borrow() as serving:
            if serving is not look.serving or serving.keyring.current_id != look.facts.kek_id:
                raise ConflictError("the keys were replaced meanwhile")
            with Rewrapper(serving.keyring, serving.cluster_id) as rewrapper:
                if renews_deks:
                    self._reseal(rewrapper, rows, batch)
                else:
                    _rewrap(rewrapper, rows, batch)
        return batch

    def write(self, look: Look, batch: Batch) -> int:
        """Commit what was made, and put the others into quarantine; return how many are new there.

        Raises:
            ConflictError: The store is at another epoch.
            StoreLostError: It is not as this nexus left it.
        """
        if batch.rewraps or batch.reseals:
            with around("job.commit"):
                self._store.write(lambda writer: self._replace(writer, look, batch), counts=False)
        if not batch.bad:
            return 0
        with around("job.quarantine"):
            count = self._store.write(lambda writer: self._set_aside(writer, look, batch), counts=False)
        if count:
            row, why = batch.bad[0]
            log.error("versions do not open, and are in quarantine", count=count, first_kek=row.kek_id, first_why=why)
        return count

    def _reseal(self, rewrapper: Rewrapper, rows: Sequence[WrappedRow], batch: Batch) -> None:
        size = 0
        for row in rows:
            if size >= _MAX_VALUES:
                break
            batch.tried += 1
            try:
                with self._store.read() as reader:
                    value = reader.load_value(row)
                if value is not None:  # else overwritten or deleted since
                    batch.reseals.append(rewrapper.reseal(row, value))
                    size += len(value)
            except (DecryptionError, CorruptRowError) as exc:
                batch.bad.append((row, str(exc)))

    def _replace(self, writer: Writer, look: Look, batch: Batch) -> None:
        self._check(writer, look)
        if batch.rewraps:
            writer.rewrap(batch.rewraps, epoch=look.position.epoch)
        if batch.reseals:
            writer.reseal(batch.reseals, epoch=look.position.epoch)

    def _set_aside(self, writer: Writer, look: Look, batch: Batch) -> int:
        self._check(writer, look)
        now = to_micros(self._clock.now())
        return sum(writer.quarantine(row, reason=why, found_at=now) for row, why in batch.bad)

    def _check(self, writer: Writer, look: Look) -> None:
        look.serving.floor.check_basis(writer.basis)
        if self._lifecycle.find_serving() is not look.serving:
            raise RecoveringError("the keys of this change were withdrawn meanwhile")


def _rewrap(rewrapper: Rewrapper, rows: Sequence[WrappedRow], batch: Batch) -> None:
    for row in rows:
        try:
            batch.rewraps.append(rewrapper.rewrap(row))
        except (DecryptionError, CorruptRowError) as exc:
            batch.bad.append((row, str(exc)))
    batch.tried = len(rows)
