"""The rows of a new set, and of a new root key with it: whether they fit the facts, and how they stand in the store.

1. A number is used once: each new one is above every one that was ever given out.
2. The new keyring holds every KEK of the current one and exactly one more, which is current in it.
3. What was current becomes old; in an emergency it and all older KEKs become tainted. Tainted stays tainted.
4. The new set is of the new generation, pending, and of no earlier timeline than the store.
5. A new root key is not the current one.
"""

from collections.abc import Mapping

import msgspec

from nexus.keys import records
from nexus.keys.operation.evidence import NewKey, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Numbers
from nexus.keys.operation.refusal import Reason, Refused

_KCV_SIZE = 32  # bytes


def next_numbers(facts: Facts, *, renews_key: bool, seen: Numbers = Numbers()) -> Numbers:  # noqa: B008 — frozen
    """Return the numbers for a new set, and for a new root key unless it stays: above all that were given out (rule 1).

    *seen* are the highest numbers that rollback marks tell: the store may have been put back.
    """
    meta = facts.meta
    set_number = max(meta.last_set_number, seen.set_number, *facts.sets) + 1
    if not renews_key:
        return Numbers(facts.generation, set_number, facts.kek_id)
    generation = max(meta.last_generation, seen.generation, facts.generation, *facts.generations) + 1
    kek_id = max(meta.last_kek_id, seen.kek_id, *map(int, facts.keyring.keks)) + 1
    return Numbers(generation, set_number, kek_id)


def find_target(staged: Staged) -> Numbers:
    """Return what is current once *staged* is."""
    return Numbers(staged.shard_set.generation, staged.shard_set.set_number, staged.kek_id)


def check_staged(facts: Facts, staged: Staged) -> Refused | None:
    """Hold what was made against the rules; None: it fits."""
    why = _find_fault(facts, staged)
    return Refused(Reason.STAGED_INVALID, why) if why else None


def given_out(staged: Staged) -> Numbers:
    """Return the numbers that are used by *staged*; 0: none."""
    if staged.key is None:
        return Numbers(set_number=staged.shard_set.set_number)
    return find_target(staged)


def make_keyring(
    keyring: records.KeyringRecord, staged: Staged, wraps: Mapping[int, bytes], *, taints: bool, at: int
) -> records.KeyringRecord:
    """Return the keyring of a new generation (rules 2 and 3). *at*: microseconds since 1970."""
    keks = {
        name: msgspec.structs.replace(kek, wrap=wraps[int(name)], state=_age(kek.state, taints=taints))
        for name, kek in keyring.keks.items()
    }
    new = records.KekRecord(wraps[staged.kek_id], records.KekState.CURRENT, staged.shard_set.generation, made_at=at)
    return records.KeyringRecord(keks | {str(staged.kek_id): new})


def make_key_rows(
    facts: Facts, staged: Staged, key: NewKey, generation: records.GenerationRecord, *, taints: bool, at: int
) -> dict[records.Key, bytes]:
    """Return the rows of a new generation, all but its set and link."""
    number = str(staged.shard_set.generation)
    keyring = make_keyring(facts.keyring, staged, key.wraps, taints=taints, at=at)
    return {
        (records.GENERATION, number): records.encode(generation),
        (records.KEYRING, number): records.encode(keyring),
        (records.ESCROW, number): records.encode(key.escrow),
        (records.CANARY, str(staged.kek_id)): records.encode(key.canary),
    }


def _age(state: records.KekState, *, taints: bool) -> records.KekState:
    if taints or state is records.KekState.TAINTED:
        return records.KekState.TAINTED
    return records.KekState.OLD


def _find_fault(facts: Facts, staged: Staged) -> str:
    shard_set = staged.shard_set
    if shard_set.state is not records.SetState.PENDING:
        return f"set {shard_set.set_number} is {shard_set.state}, want pending"
    if shard_set.timeline < facts.meta.timeline:
        return f"set {shard_set.set_number} is of timeline {shard_set.timeline}, want at least {facts.meta.timeline}"
    lowest = next_numbers(facts, renews_key=staged.key is not None)
    if shard_set.set_number < lowest.set_number:
        return f"set number is {shard_set.set_number}, want at least {lowest.set_number}"
    xs = {member.x for member in shard_set.members}
    names = {member.name for member in shard_set.members}
    if not shard_set.threshold <= len(shard_set.members) == len(xs) == len(names):
        return f"set {shard_set.set_number} has members of one name or point, or too few"
    if staged.key is None:
        return (
            ""
            if find_target(staged) == Numbers(facts.generation, shard_set.set_number, facts.kek_id)
            else (
                f"set {shard_set.set_number} is of generation {shard_set.generation} and KEK {staged.kek_id}, "
                f"want {facts.generation} and {facts.kek_id}"
            )
        )
    if shard_set.generation < lowest.generation or staged.kek_id < lowest.kek_id:
        return (
            f"generation and KEK are {shard_set.generation} and {staged.kek_id}, "
            f"want at least {lowest.generation} and {lowest.kek_id}"
        )
    return _find_key_fault(facts, staged.key, staged.kek_id)


def _find_key_fault(facts: Facts, key: NewKey, kek_id: int) -> str:
    wanted = {int(name) for name in facts.keyring.keks} | {kek_id}
    if key.wraps.keys() != wanted:
        return f"wraps are of KEKs {sorted(key.wraps)}, want {sorted(wanted)}"
    if len(key.kcv) != _KCV_SIZE or any(key.kcv == record.kcv for record in facts.generations.values()):
        return "the kcv is that of an earlier root key, or has the wrong size"
    if not any(copy.kind == records.RECOVERY_COPY for copy in key.escrow.copies):
        return "the new escrow has no copy that custodians open"
    if key.canary.kek_id != kek_id:
        return f"the new canary is under KEK {key.canary.kek_id}, want {kek_id}"
    return "" if key.link else "the new link is empty"
