"""What is current, replaced at once, with no keeper asked before: after an unseal, and when an older store is accepted.

1. An operation that is in progress ends in the same change.
2. The new set's shards, which no keeper holds yet, are delivered afterwards; ready does not wait for them.
3. What was replaced is not kept: nothing could go back to it.
4. It is a part of the change of the unseal or of the acceptance, which raises the epoch and writes the entry.
"""

import msgspec

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.ending import end_operation, find_replaced
from nexus.keys.operation.evidence import NewKey, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.guards import check_chain
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.operation.staging import check_staged, find_target, given_out, make_key_rows


def replace_at_once(
    facts: Facts, staged: Staged, *, actor: str, reason: str, revision: int, at: int
) -> Change | Refused:
    """End the operation, and make *staged* current in the same change: a new set, and with a key a new generation.

    *reason* says why nobody waits for a backup of a new generation. *revision* is that of the change.
    """
    if refused := check_staged(facts, staged):
        return refused
    if staged.key is not None and (refused := check_chain(facts)):
        return refused
    if staged.key is not None and facts.chain_length >= MAX_LINKS:
        return Refused(Reason.CHAIN_FULL, f"the chain has {facts.chain_length} links, want fewer than {MAX_LINKS}")
    ended = end_operation(facts)  # rule 1
    ending = facts.after(ended)
    old, new = ending.current_set, staged.shard_set
    put = {
        (records.SHARD_SET, str(one.set_number)): records.encode(records.replace_state(one, state))
        for one, state in ((old, records.SetState.DEAD), (new, records.SetState.CURRENT))
    }
    if staged.key is not None:
        put |= _renew_generation(ending, staged, staged.key, actor=actor, reason=reason, revision=revision, at=at)
    change = Change(find_target(staged), put, given_out=given_out(staged), raises_epoch=False)
    joined = ended.join(change)
    replaced = find_replaced(ending.after(change))  # rule 3
    return joined.join(Change(change.current, delete=frozenset(replaced), raises_epoch=False))


def _renew_generation(
    facts: Facts, staged: Staged, key: NewKey, *, actor: str, reason: str, revision: int, at: int
) -> dict[records.Key, bytes]:
    generation = records.GenerationRecord(
        records.GenerationState.ACTIVE,
        key.kcv,
        created_at=at,
        activated_at=at,
        flip_revision=revision,
        actor=actor,
        reason=reason,
        without_backup=reason,
    )
    rows = make_key_rows(facts, staged, key, generation, taints=False, at=at)
    rows[records.LINK, str(facts.chain_length + 1)] = records.encode(records.LinkRecord(key.link))
    old = facts.generations.get(facts.generation)
    if old is not None:
        decrypt_only = msgspec.structs.replace(old, state=records.GenerationState.DECRYPT_ONLY)
        rows[records.GENERATION, str(facts.generation)] = records.encode(decrypt_only)
    return rows
