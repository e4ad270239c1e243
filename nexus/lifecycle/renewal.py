"""Replace what an older program left in the control rows, in one change of its own, at the first ready.

1. With a manifest of the first format, the second begins, and with it the epochs.
2. Rows of the old form (`nexus.keys.old_form`) are replaced once all of them verify: a damaged escrow is put back from
   a backup first, and replaced at the ready after that.
3. The meta row learns which KEK is current.
4. The audit says what was done.
"""

from collections.abc import Callable
from dataclasses import replace

import structlog

from nexus.keys import manifest
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, find_renewal, load_view
from nexus.store.protocol import Meta, Store, Writer

WriteNote = Callable[[Writer, str], None]  # writes what was done into the audit, with the change

log = structlog.get_logger("warden")


def is_due(serving: Serving) -> bool:
    """Whether an older program left anything."""
    return serving.manifest_format == 1 or serving.has_old_rows


def renew_controls(
    store: Store, serving: Serving, *, begin_epoch: Callable[[Meta], Meta], write_note: WriteNote
) -> None:
    """Make the manifest anew, and replace the rows of the old form. *begin_epoch* gives the meta row its epoch.

    Raises:
        StoreUnavailableError: Not committed.
        StoreLostError, CorruptRowError: The store is not as *serving* was proved on it; not committed.
    """
    done = ["format 2"] if serving.manifest_format == 1 else []

    def edit(meta: Meta) -> Meta:
        begun = begin_epoch(meta) if serving.manifest_format == 1 else meta
        return replace(begun, kek_id=serving.keyring.current_id)

    def change(writer: Writer) -> tuple[Standing, PolicyView]:
        put, delete = find_renewal(writer, serving.root_key)
        standing = manifest.change(writer, serving.root_key, serving.floor, put=put, delete=delete, edit=edit)
        what = [*done, f"rows of generation {serving.root_key.generation}"] if put else done
        write_note(writer, ", ".join(what))
        return standing, load_view(writer, serving.root_key)

    store.write(change, alone=True, on_commit=lambda left: serving.follow(*left))
    serving.has_old_rows = False
    log.info("control rows of an older program renewed")
