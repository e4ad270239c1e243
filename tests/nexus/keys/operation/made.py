"""Rows, sets and evidence made of tokens in place of keys: what is opened is compared, and nothing is encrypted."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from common.keys import shamir
from nexus.keys import records
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup, Holding, NewKey, Order, Preflight, Proof, Staged
from nexus.keys.operation.facts import Facts, read_facts
from nexus.keys.operation.record import Depth, Driver, Numbers, OperationRecord, Step
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.staging import next_numbers
from nexus.store.protocol import Meta, Phase

CLUSTER = b"c" * 16
GENESIS = b"g" * 32
NAMES = ("k1", "k2", "k3", "k4", "k5")
DAY = 86_400_000_000  # microseconds
NOW = 1_000 * DAY
DRIVER = Driver("nexus-1", b"b" * 16)
OTHER = Driver("nexus-1", b"o" * 16)
OPERATION_ID = b"o" * 16
FIRST = Numbers(1, 1, 2)


def token(*parts: object) -> bytes:
    """Return 32 bytes that only *parts* give."""
    return hashlib.sha256(repr(parts).encode()).digest()


def make_shard(set_id: bytes, x: int) -> bytes:
    """Return the shard of a set at *x*, 33 bytes."""
    return token("shard", set_id, x) + bytes([x])


def make_set(
    numbers: Numbers,
    *,
    state: records.SetState = records.SetState.PENDING,
    names: Iterable[str] = NAMES,
    threshold: int = 3,
    timeline: int = 1,
    nonce: object = "",
) -> records.ShardSetRecord:
    set_id = token("set", numbers.set_number, timeline, nonce)[:16]
    members = tuple(
        records.MemberRecord(name, f"spiffe://test/{name}", name, x, _commit(set_id, x))
        for x, name in enumerate(names, start=1)
    )
    return records.ShardSetRecord(state, numbers.generation, set_id, numbers.set_number, timeline, threshold, members)


def _commit(set_id: bytes, x: int) -> bytes:
    return shamir.commitment(memoryview(make_shard(set_id, x)), cluster_id=CLUSTER, set_id=set_id)


def make_wrap(root: bytes, kek: bytes) -> bytes:
    """Wrap the token of a KEK: it opens for *root* alone."""
    return token("under", root) + kek


def open_wrap(wrap: bytes, root: bytes) -> bytes | None:
    """Return the token of the KEK, None: another root key wrapped it."""
    return wrap[32:] if wrap[:32] == token("under", root) else None


def make_escrow(root: bytes) -> records.EscrowRecord:
    return records.EscrowRecord((records.EscrowCopy(records.RECOVERY_COPY, bytes(32), root),))


def make_canary(kek_id: int, kek: bytes) -> records.CanaryRecord:
    return records.CanaryRecord(kek_id, bytes(16), kek, b"canary")


def make_key(root: bytes, numbers: Numbers, keks: Mapping[int, bytes]) -> NewKey:
    """*keks*: every KEK token by number, the new one included."""
    wraps = {number: make_wrap(root, kek) for number, kek in keks.items()}
    return NewKey(root, wraps, make_escrow(root), make_canary(numbers.kek_id, keks[numbers.kek_id]), link=root)


def first_bodies(root: bytes, kek: bytes, *, threshold: int = 3, nonce: object = "") -> dict[records.Key, bytes]:
    """The rows of a cluster after its init."""
    generation = records.GenerationRecord(records.GenerationState.ACTIVE, root, created_at=1, activated_at=1)
    keyring = records.KeyringRecord({"2": records.KekRecord(make_wrap(root, kek), records.KekState.CURRENT, 1)})
    first_set = make_set(FIRST, state=records.SetState.CURRENT, threshold=threshold, nonce=nonce)
    return {
        records.GENESIS: b"genesis",
        records.RECOVERY_KEY: b"recovery key",
        (records.GENERATION, "1"): records.encode(generation),
        (records.KEYRING, "1"): records.encode(keyring),
        (records.ESCROW, "1"): records.encode(make_escrow(root)),
        (records.CANARY, "2"): records.encode(make_canary(2, kek)),
        (records.SHARD_SET, "1"): records.encode(first_set),
    }


def make_meta(**changes: Any) -> Meta:
    values: dict[str, Any] = {
        "phase": Phase.INITIALISED,
        "cluster_id": CLUSTER,
        "sealed": False,
        "timeline": 1,
        "revision": 10,
        "control_revision": 3,
        "last_generation": 1,
        "last_set_number": 1,
        "last_kek_id": 2,
        "last_init_attempt": 1,
        "epoch": 5,
        "generation": 1,
        "kek_id": 2,
    }
    return Meta(**(values | changes))


def make_facts(**changes: Any) -> Facts:
    """An initialised cluster in which nothing is in progress."""
    return read_facts(make_meta(**changes), first_bodies(token("root", 1), token("kek", 2)))


def make_order(depth: Depth = Depth.ROTATE, **changes: Any) -> Order:
    values: dict[str, Any] = {
        "depth": depth,
        "keepers": NAMES,
        "threshold": 3,
        "actor": "spiffe://test/alice",
        "reason": "yearly",
    }
    return Order(**(values | changes))


def make_preflight(**changes: Any) -> Preflight:
    """Everything is as it should be, and no backup was made."""
    values: dict[str, Any] = {
        "now": NOW,
        "reachable": frozenset(NAMES),
        "too_old": frozenset(),
        "is_escrow_proved": True,
        "backup": None,
        "backup_max_age": 7 * DAY,
        "minimum_age": 30 * DAY,
        "is_in_window": True,
        "disk_free": 2,
        "disk_wanted": 1,
        "memory_free": 2,
        "memory_wanted": 1,
    }
    return Preflight(**(values | changes))


def make_staged(facts: Facts, numbers: Numbers, *, renews_key: bool = True, **changes: Any) -> Staged:
    """What a driver makes for *numbers*; *changes* are of the set."""
    shard_set = make_set(numbers, **({"timeline": facts.meta.timeline} | changes))
    if not renews_key:
        return Staged(shard_set, numbers.kek_id, None)
    root = token("root", numbers.generation)
    keks = {int(number): kek.wrap[32:] for number, kek in facts.keyring.keks.items()}
    return Staged(
        shard_set, numbers.kek_id, make_key(root, numbers, keks | {numbers.kek_id: token("kek", numbers.kek_id)})
    )


def read_operation(facts: Facts) -> OperationRecord:
    """Return the operation, which has to be there."""
    assert facts.operation is not None
    return facts.operation


def do(facts: Facts, change: Change | Refused) -> Facts:
    """Return the facts as a change leaves them; it must not be refused."""
    assert not isinstance(change, Refused), change
    return facts.after(change)


def prepare(facts: Facts, depth: Depth = Depth.ROTATE, *, at: int = NOW, **order: Any) -> Facts:
    """Begin an operation whose preflight is in order."""
    numbers = next_numbers(facts, renews_key=depth.renews_key)
    staged = make_staged(facts, numbers, renews_key=depth.renews_key)
    preflight = make_preflight(backup=Backup(facts.generation, NOW))
    made = make_order(depth, **({"is_forced": True} | order))
    change = transitions.prepare(facts, made, staged, preflight, operation_id=OPERATION_ID, driver=DRIVER, at=at)
    return do(facts, change)


def prove(facts: Facts, **changes: Any) -> Proof:
    """The proof that the driver of now has at this step."""
    operation = read_operation(facts)
    made = Proof(operation.id, operation.target.set_number, operation.step, operation.driver)
    return replace(made, **changes)


def hold(*names: str, age: float = 0.0) -> dict[str, Holding]:
    """These keepers proved themselves so many seconds ago."""
    return {name: Holding(name.encode(), age) for name in names}


def distribute(facts: Facts) -> Facts:
    operation = read_operation(facts)
    change = transitions.distribute(
        facts, operation.ticket, driver=DRIVER, proof=prove(facts), holders=hold(*NAMES), at=NOW
    )
    return do(facts, change)


def flip(facts: Facts) -> Facts:
    operation = read_operation(facts)
    change = transitions.flip(
        facts,
        operation.ticket,
        driver=DRIVER,
        proof=prove(facts),
        holders=hold(*NAMES),
        link=b"signed" if operation.depth.renews_key else b"",
        revision=77,
        at=NOW + 1,
    )
    return do(facts, change)


def settle(facts: Facts) -> Facts:
    operation = read_operation(facts)
    return do(facts, transitions.settle(facts, operation.ticket, driver=DRIVER, proof=prove(facts), at=NOW + 2))


def bring_to(step: Step | None, depth: Depth = Depth.ROTATE) -> Facts:
    """A cluster in which an operation is at *step*; None: nothing is in progress."""
    facts = make_facts()
    if step is not None:
        facts = prepare(facts, depth)
    if step in (Step.DISTRIBUTED, Step.FLIPPED):
        facts = distribute(facts)
    if step is Step.FLIPPED:
        facts = flip(facts)
    return facts


def damage(facts: Facts, *keys: records.Key) -> Facts:
    """Return the facts with rows that do not verify."""
    bodies = {key: body for key, body in facts.bodies.items() if key not in keys}
    return read_facts(facts.meta, bodies, facts.damaged | set(keys))


def edit_row(facts: Facts, key: records.Key, record: Any) -> Facts:
    """Return the facts with another record in a row."""
    return read_facts(facts.meta, {**facts.bodies, key: records.encode(record)}, facts.damaged)
