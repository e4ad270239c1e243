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

# Decides by the facts, and by what else it reads within the change. It may change rows that are no control rows.
Decide = Callable[[Writer, Facts], Change | Refused]


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

    return commit_decision(
        store, serving, lambda writer, facts: rule(facts, writer.revision), write_entry, heir=heir, on_commit=on_commit
    )


def commit_decision(
    store: Store,
    serving: Serving,
    decide: Decide,
    write_entry: WriteEntry,
    *,
    heir: RootKey | None = None,
    on_commit: Callable[[], None] = lambda: None,
) -> Change:
    """Commit what *decide* says and does, otherwise as `commit_rule`."""

    def change(writer: Writer) -> tuple[Change, Standing, PolicyView]:
        serving.floor.check_basis(writer.basis)  # here as well: a change of no control row is not compared below
        decided, standing = apply_rule(writer, serving, lambda facts, _: decide(writer, facts), heir=heir)
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
