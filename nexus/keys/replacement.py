"""Replace the current shard set at once, in one change together with what that ends; and the root key with it.

1. Custodians know no points, and an accepted store may have lost its set. The new shards are delivered afterwards.
2. A store that was accepted gets a new root key: the chain of generations shows from then on that it went its own way,
   and marks of what came after it are of a history that was given up.
3. The rule is `nexus.keys.operation.replacing`: an operation that is in progress ends in the same change.
4. Rows of the old form are replaced in the same change: a row of today beside them would hide them.
5. A new root key is planned under the warden's lock, and made and sealed to the custodians outside of it: that takes a
   child process, for which a seal must not wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from common.clock import Clock, to_micros
from common.errors import OperationRefusedError
from common.failpoint import around
from common.forms.chain import Chain, extend_chain
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest
from nexus.keys.backup_key import carry_backup_key
from nexus.keys.floor import Standing
from nexus.keys.manifest import Key
from nexus.keys.opened import OtherSets, PolicyView, Serving, find_renewal, load_view
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import NewKey, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.replacing import replace_at_once
from nexus.keys.operation.schedule import note_people
from nexus.keys.operation.staging import next_numbers
from nexus.keys.outbox import WriteEntry
from nexus.keys.records import SetState
from nexus.keys.ruled_change import load_facts
from nexus.keys.shard_set import Member, ShardSet, draw_set
from nexus.keys.succession import KeyPlan, MadeKey, describe_key, make_key, plan_key, seal_to_custodians, sign_link
from nexus.keys.successor import Successor
from nexus.store.protocol import Meta, Reader, Store, Writer

_NOTHING: Mapping[Key, bytes] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Renewal:
    """That the root key is replaced as well, by which one, and why."""

    actor: str  # SPIFFE ID of whoever wants it
    reason: str
    key: MadeKey


@dataclass(frozen=True, slots=True)
class SetReplacement:
    """Thread-safe."""

    store: Store
    memory: ProtectedMemory
    clock: Clock

    def commit(
        self,
        serving: Serving,
        write_entry: WriteEntry,
        edit: Callable[[Meta], Meta],
        *,
        beside: Mapping[Key, bytes] = _NOTHING,
        renewal: Renewal | None = None,
    ) -> None:
        """Draw a new set, of a new root key with *renewal*, commit it, and let *serving* have it from here on.

        The set before is dead from then on, and the policies that the change leaves are in force. *edit* changes the
        meta row with it; *beside* are other control rows of the change. On failure nothing has changed, and the new key
        is wiped.

        Raises:
            StoreUnavailableError: Not committed.
            StoreLostError: The store is not as *serving* was proved on it; not committed.
            CorruptRowError: The manifest does not verify; not committed.
        """
        key = None if renewal is None else renewal.key
        pending, drawn = serving.others.pending, list[Successor]()

        def change(writer: Writer) -> tuple[Standing, PolicyView, Chain]:
            draft = self._draw(writer, serving, edit, key, renewal)
            drawn.append(draft.successor)
            standing = draft.write(writer, serving, edit, beside)
            root_key = draft.successor.root_key or serving.root_key
            write_entry(writer, root_key)
            return standing, load_view(writer, root_key), draft.chain

        def follow(left: tuple[Standing, PolicyView, Chain]) -> None:
            standing, view, chain = left
            serving.succeed(drawn[-1], chain, OtherSets())
            serving.follow(standing, view)

        try:
            with around("unseal.end" if renewal is None else "accept.commit"):
                self.store.write(change, alone=True, on_commit=follow)
        except BaseException:
            for successor in drawn:
                successor.release()
            if key is not None:
                key.staged.release()
            raise
        if pending is not None:
            pending.release()

    def plan_key(self, serving: Serving, edit: Callable[[Meta], Meta]) -> KeyPlan:
        """Plan a new root key for `commit` with the same *edit*.

        Raises:
            CorruptRowError: The manifest does not verify, or a new root key would have no way back.
        """
        with self.store.read() as reader:
            return plan_key(serving, _load_edited(reader, serving, edit))

    def make_key(self, plan: KeyPlan) -> MadeKey:
        """Make the new root key, which the caller owns; to be called without a lock (rule 5).

        Raises:
            CorruptRowError: No key can have these numbers.
            UnavailableError: It could not be sealed to the custodians.
        """
        with around("accept.escrow"):
            return seal_to_custodians(make_key(plan, self.memory), plan)

    def _draw(
        self,
        writer: Writer,
        serving: Serving,
        edit: Callable[[Meta], Meta],
        key: MadeKey | None,
        renewal: Renewal | None,
    ) -> "_Draft":
        """Draw the new set, and decide what changes; nothing is written yet."""
        facts, now = _load_edited(writer, serving, edit), to_micros(self.clock.now())
        root_key = serving.root_key if key is None else key.staged.root_key
        new_key = None if key is None else _describe(key, serving, facts, revision=writer.revision)
        old = facts.current_set
        record, points = draw_set(
            root_key.view,
            [Member(member.name, member.spiffe_id, member.address) for member in old.members],
            threshold=old.threshold,
            generation=root_key.generation,
            set_number=next_numbers(facts, renews_key=False).set_number,
            timeline=facts.meta.timeline,
            cluster_id=serving.cluster_id,
            memory=self.memory,
            state=SetState.PENDING,
            drawn_at=now,
        )
        label = record.label(serving.cluster_id, serving.genesis.fingerprint)
        successor = Successor(ShardSet(record, label, points), None if key is None else key.staged)
        kek_id = facts.kek_id if key is None else key.staged.keyring.current_id
        try:
            decided = replace_at_once(
                facts,
                Staged(record, kek_id, new_key),
                actor="" if renewal is None else renewal.actor,
                reason="" if renewal is None else renewal.reason,
                revision=writer.revision,
                at=now,
            )
            if isinstance(decided, Refused):
                raise OperationRefusedError(decided.text, reason=decided.reason)
            if key is not None:
                new = key.staged.keyring
                decided = carry_backup_key(decided, facts, serving.keyring, new, is_compromised=False)
            elif serving.is_from_people:
                decided = decided.join(Change(decided.current, note_people(facts, at=now), raises_epoch=False))
            chain = extend_chain(serving.chain, [] if new_key is None else [new_key.link])
        except BaseException:
            successor.release()
            raise
        return _Draft(successor, decided, chain)


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is about to be committed."""

    successor: Successor
    decided: Change
    chain: Chain

    def write(
        self, writer: Writer, serving: Serving, edit: Callable[[Meta], Meta], beside: Mapping[Key, bytes]
    ) -> Standing:
        put, delete = {**self.decided.put, **beside}, set(self.decided.delete)
        renewed, outdated = find_renewal(writer, serving.root_key)  # rule 4
        put = {key: body for key, body in renewed.items() if key not in delete} | put
        delete |= outdated
        return manifest.change(
            writer,
            serving.root_key,
            serving.floor,
            put=put,
            delete=delete,
            edit=lambda meta: self.decided.edit(edit(meta)),
            successor=self.successor.root_key,
        )


def _load_edited(reader: Reader, serving: Serving, edit: Callable[[Meta], Meta]) -> Facts:
    """Load the facts with the meta row as the change leaves it."""
    facts = load_facts(reader, serving.root_key)
    return replace(facts, meta=edit(facts.meta))


def _describe(key: MadeKey, serving: Serving, facts: Facts, *, revision: int) -> NewKey:
    described = describe_key(serving, facts, key)
    return replace(described, link=sign_link(described.link, serving, facts.meta, revision=revision))
