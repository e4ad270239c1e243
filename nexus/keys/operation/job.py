"""The keyring job: it brings every row to the current KEK, so that older KEKs and generations can go. Its pure part.

1. The job needs no record: its work is every row whose KEK is not current, and the keyring says how far each KEK is.
2. A KEK is current, then old or tainted, then verified, then gone. Rows under an old KEK are wrapped anew; rows under a
   tainted one get a new DEK and are sealed anew. The lowest number comes first.
3. Nothing writes under an older KEK after the flip, so rows under it only become fewer.
4. Verified: every row was read without an index, and none outside the quarantine is under this KEK.
5. A row that does not open goes to quarantine, by path, incarnation and version, and stays under its KEK. Somebody
   gives it up by name, or it is tried once more. The keyring counts what was given up under each KEK.
6. A KEK goes when it is verified, nothing but rows that were given up is under it, the keyring has counted exactly
   these, no other row waits in quarantine (the KEK that it names may be what is damaged), and a backup of the current
   generation is verified, unless that was waived.
7. A generation is retired when no KEK that was made in it is left. A compromised one stays compromised.
8. While an operation is in progress the keyring is frozen: rows are wrapped anew, and KEKs wait.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.refusal import Reason, Refused


@dataclass(frozen=True, slots=True)
class KekRows:
    """How many rows are under one KEK."""

    open: int = 0  # outside the quarantine
    quarantined: int = 0  # and not given up, whatever KEK they name
    abandoned: int = 0  # given up by name


@dataclass(frozen=True, slots=True)
class Rewrap:
    """Bring rows under a KEK to the current one; *renews_deks*: with new DEKs, the values sealed anew."""

    kek_id: int
    renews_deks: bool


@dataclass(frozen=True, slots=True)
class Verify:
    """Read every row, and count those under a KEK."""

    kek_id: int


@dataclass(frozen=True, slots=True)
class Retire:
    """Commit that a KEK goes."""

    kek_id: int


class WaitsFor(enum.StrEnum):
    """What the job cannot do by itself."""

    OPERATION = "operation"
    QUARANTINE = "quarantine"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Waiting:
    """A KEK could go, but for this."""

    kek_id: int
    waits_for: WaitsFor


JobStep = Rewrap | Verify | Retire | Waiting


@dataclass(frozen=True, slots=True)
class Counts:
    """What the store counts, by KEK."""

    rows: Mapping[int, KekRows] = field(default_factory=dict)

    def of(self, kek_id: int) -> KekRows:
        """Return the counts of one KEK."""
        return self.rows.get(kek_id, KekRows())


def next_job_step(facts: Facts, counts: Counts, backup: Backup | None) -> JobStep | None:
    """Say what the job does next; None: every row is under the current KEK, and that one is alone."""
    keks = _older_keks(facts)
    for kek_id, kek in keks:
        if counts.of(kek_id).open:
            return Rewrap(kek_id, renews_deks=kek.state is records.KekState.TAINTED)
    for kek_id, kek in keks:
        if facts.operation is not None:
            return Waiting(kek_id, WaitsFor.OPERATION)  # rule 8
        if not kek.verified_at:
            return Verify(kek_id)
    steps = [_retire_or_wait(facts, kek_id, counts, backup) for kek_id, _ in keks]
    return next((step for step in steps if isinstance(step, Retire)), next(iter(steps), None))


def mark_verified(facts: Facts, kek_id: int, counted: KekRows, *, at: int) -> Change | Refused:
    """Keep in the keyring that no open row was found under a KEK (rule 4)."""
    kek = _find_older(facts, kek_id)
    if isinstance(kek, Refused):
        return kek
    if counted.open:
        return Refused(Reason.ROWS_LEFT, f"{counted.open} rows are under KEK {kek_id}")
    return _change_keyring(facts, {kek_id: {"verified_at": at}})


def count_abandoned(facts: Facts, kek_id: int, added: int) -> Change | Refused:
    """Count rows under a KEK that are given up, in the change that marks them so (rule 5). *added* may be negative."""
    kek = _find_older(facts, kek_id)
    if isinstance(kek, Refused):
        return kek
    if kek.abandoned + added < 0:
        return Refused(Reason.QUARANTINE, f"{kek.abandoned} rows under KEK {kek_id} are given up, not {-added}")
    return _change_keyring(facts, {kek_id: {"abandoned": kek.abandoned + added}})


def verify_again(facts: Facts) -> Change | Refused:
    """Take back that older KEKs are verified: a row came out of quarantine, and may name another KEK than its own."""
    verified = {kek_id: {"verified_at": 0} for kek_id, kek in _older_keks(facts) if kek.verified_at}
    for kek_id in verified:
        if isinstance(kek := _find_older(facts, kek_id), Refused):
            return kek
    return _change_keyring(facts, verified) if verified else Change(facts.current, raises_epoch=False)


def retire(facts: Facts, kek_id: int, counted: KekRows, backup: Backup | None, *, at: int) -> Change | Refused:
    """Delete a KEK (rule 6), and retire the generations that end with it (rule 7).

    *counted* was counted in the change itself.
    """
    kek = _find_older(facts, kek_id)
    if isinstance(kek, Refused):
        return kek
    if not kek.verified_at:
        return Refused(Reason.KEK_UNVERIFIED, f"KEK {kek_id} is not verified")
    if counted.open:
        return Refused(Reason.ROWS_LEFT, f"{counted.open} rows are under KEK {kek_id}")
    if counted.quarantined or counted.abandoned != kek.abandoned:
        text = f"{counted.quarantined} rows in quarantine, {counted.abandoned} given up, want 0 and {kek.abandoned}"
        return Refused(Reason.QUARANTINE, f"KEK {kek_id}: {text}")
    if not _has_backup(facts, backup):
        return Refused(Reason.BACKUP_OLD, f"no backup of generation {facts.generation} is verified")
    kept = {name: one for name, one in facts.keyring.keks.items() if int(name) != kek_id}
    put = _retire_generations(facts, kept.values(), at=at)
    put[records.KEYRING, str(facts.generation)] = records.encode(records.KeyringRecord(kept))
    return Change(facts.current, put)


def _older_keks(facts: Facts) -> list[tuple[int, records.KekRecord]]:
    keks = sorted((int(name), kek) for name, kek in facts.keyring.keks.items())
    return [(kek_id, kek) for kek_id, kek in keks if kek.state is not records.KekState.CURRENT]


def _retire_or_wait(facts: Facts, kek_id: int, counts: Counts, backup: Backup | None) -> Retire | Waiting:
    counted = counts.of(kek_id)
    if counted.quarantined or counted.abandoned != facts.keyring.keks[str(kek_id)].abandoned:
        return Waiting(kek_id, WaitsFor.QUARANTINE)
    if not _has_backup(facts, backup):
        return Waiting(kek_id, WaitsFor.BACKUP)
    return Retire(kek_id)


def _has_backup(facts: Facts, backup: Backup | None) -> bool:
    generation = facts.generations.get(facts.generation)
    if generation is not None and generation.without_backup:
        return True
    return backup is not None and backup.generation == facts.generation


def _find_older(facts: Facts, kek_id: int) -> records.KekRecord | Refused:
    """Return a KEK that may change: one that is not current, while no operation is in progress (rule 8)."""
    if facts.operation is not None or records.OPERATION in facts.damaged:
        return Refused(Reason.OPERATION_RUNNING, "the keyring is frozen: an operation is in progress")
    kek = facts.keyring.keks.get(str(kek_id))
    if kek is None:
        return Refused(Reason.KEK_UNKNOWN, f"KEK {kek_id} is not in the keyring")
    if kek.state is records.KekState.CURRENT:
        return Refused(Reason.KEK_CURRENT, f"KEK {kek_id} is current")
    return kek


def _change_keyring(facts: Facts, edits: Mapping[int, Mapping[str, Any]]) -> Change:
    keks = dict(facts.keyring.keks)
    for kek_id, edit in edits.items():
        keks[str(kek_id)] = msgspec.structs.replace(keks[str(kek_id)], **edit)
    body = records.encode(records.KeyringRecord(keks))
    return Change(facts.current, {(records.KEYRING, str(facts.generation)): body})


def _retire_generations(facts: Facts, kept: Iterable[records.KekRecord], *, at: int) -> dict[records.Key, bytes]:
    alive = {kek.generation for kek in kept} | {facts.generation}
    put = {}
    for number, record in facts.generations.items():
        if number in alive or record.retired_at:
            continue
        if record.state is records.GenerationState.DECRYPT_ONLY:
            record = msgspec.structs.replace(record, state=records.GenerationState.RETIRED)
        elif record.state is not records.GenerationState.COMPROMISED:
            continue
        put[records.GENERATION, str(number)] = records.encode(msgspec.structs.replace(record, retired_at=at))
    return put
