"""A change of control rows that a rule decides, by the rows as the change finds them (`nexus.keys.operation`)."""

from collections.abc import Callable
from dataclasses import replace

from common.errors import OperationRefusedError
from nexus.keys import manifest
from nexus.keys.floor import Standing
from nexus.keys.opened import PolicyView, Serving, load_view, renew
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.refusal import Refused
from nexus.keys.outbox import WriteEntry
from nexus.keys.root_key import RootKey
from nexus.store.protocol import ControlRow, Meta, Reader, Store, Writer

# Decides by the facts, and by the revision that the change will have.
Rule = Callable[[Facts, int], Change | Refused]


def load_facts(reader: Reader, root_key: RootKey) -> Facts:
    """Load what rules look at, in the form of today.

    Raises:
        CorruptRowError: The manifest does not verify, or no nexus could be ready with its rows.
    """
    meta = reader.load_meta()
    controls = renew(manifest.verify(meta, reader.load_controls(), root_key), root_key.generation)
    return read_facts(meta, controls.bodies, controls.damaged)


def apply_rule(writer: Writer, serving: Serving, rule: Rule, *, heir: RootKey | None = None) -> tuple[Change, Standing]:
    """Change what *rule* says, within the change of *writer*; return what that was, and where it leaves the store.

    A change of no rows is none, and leaves the manifest as it was. With an *heir*, a later root key, the manifest is
    made with that.

    Raises:
        OperationRefusedError: The rule refuses.
        StoreLostError, CorruptRowError: The store is not as *serving* was proved on it.
    """
    decided = rule(load_facts(writer, serving.root_key), writer.revision)
    if isinstance(decided, Refused):
        raise OperationRefusedError(decided.text, reason=decided.reason)
    if decided.is_empty:
        return decided, serving.floor.standing
    standing = manifest.change(
        writer,
        serving.root_key,
        serving.floor,
        put=decided.put,
        delete=decided.delete,
        edit=decided.edit,
        successor=heir,
    )
    return decided, standing


def commit_rule(
    store: Store,
    serving: Serving,
    rule: Rule,
    write_entry: WriteEntry,
    *,
    heir: RootKey | None = None,
    on_commit: Callable[[], None] = lambda: None,
) -> Change:
    """Commit what *rule* says, as a change of its own, and return it; *on_commit* runs before any other change.

    With an *heir*, a later root key, what is left is authenticated with that.

    Raises:
        OperationRefusedError: The rule refuses; nothing changed.
        StoreUnavailableError: Not committed.
        StoreLostError, CorruptRowError: The store is not as *serving* was proved on it; not committed.
    """

    def change(writer: Writer) -> tuple[Change, Standing, PolicyView]:
        decided, standing = apply_rule(writer, serving, rule, heir=heir)
        key = heir or serving.root_key
        write_entry(writer, key)
        return decided, standing, load_view(writer, key)

    def follow(left: tuple[Change, Standing, PolicyView]) -> None:
        on_commit()  # first: no mark of what is new is made with what was before (`Root`)
        serving.follow(left[1], left[2])

    return store.write(change, alone=True, on_commit=follow)[0]


def rehearse(facts: Facts, change: Change, root_key: RootKey) -> tuple[Meta, list[ControlRow]]:
    """Return meta and control rows as *change* would leave them, under a manifest by *root_key*. Nothing is written."""
    meta = replace(change.edit(facts.meta), control_revision=facts.meta.control_revision + 1)
    return meta, manifest.compose(meta, change.apply(facts.bodies), root_key)
