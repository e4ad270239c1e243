"""Reads every version, without an index, to tell that nothing is left under an older KEK.

A row that names the current KEK has to have a wrap under it, as the commitment of the wrap tells: its number may be
what is damaged.

Pages are short reads, so memory stays flat and nobody waits. A row may change its KEK in between, but only to the
current one, and it keeps its place.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from common.errors import ConflictError
from nexus.admin.operations.look import Look, is_in_quarantine
from nexus.keys.opened import Serving
from nexus.keys.wrap import is_committed
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Store
from nexus.store.rewrapping import WrappedRow

_PAGE: Final = 500  # rows


@dataclass(slots=True)
class KekScan:
    """What was read so far."""

    after: int | None = None  # row id of the last one
    rows: int = 0
    open: Counter[int] = field(default_factory=Counter)  # rows outside the quarantine that are to be brought, by KEK


class Scanner:
    """Used by one thread."""

    def __init__(self, store: Store, lifecycle: Lifecycle) -> None:
        self._store = store
        self._lifecycle = lifecycle

    def read_page(self, look: Look, scan: KekScan) -> list[WrappedRow] | None:
        """Read on, and return the rows that should not be as they are; None: that was all.

        Raises:
            ConflictError: The current KEK is another one by now.
            StoreLostError: The store was put back.
        """
        with self._lifecycle.borrow() as serving:
            floor = serving.floor.position
            with self._store.read() as reader:
                position = reader.load_position()
                serving.floor.check_read(floor, position)
                if serving is not look.serving or position.kek_id != look.facts.kek_id:
                    raise ConflictError("the keys were replaced meanwhile")
                page = reader.scan_versions(after=scan.after, limit=_PAGE)
                strange = [row for row in page if row.kek_id != position.kek_id or not is_under_current(row, serving)]
                found = [row for row in strange if not is_in_quarantine(reader, row)]
        if not page:
            return None
        scan.after = page[-1].row_id
        scan.rows += len(page)
        scan.open.update(row.kek_id for row in found)
        return found


def is_under_current(row: WrappedRow, serving: Serving) -> bool:
    """Whether the wrap of a row is under the current KEK."""
    keyring = serving.keyring
    return is_committed(row.wrapped_dek, keyring.find_kek(keyring.current_id))
