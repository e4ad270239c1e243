"""What a ready nexus works with: all that the root key opened, and the proof that it is the right one.

The proof, in this order: the kcv matches; the manifest verifies; genesis, generation, keyring, current set and canary
are rows of it; the chain of generations leads from genesis to this key; every KEK opens; the canary of the current KEK
opens. Rows of other generations are not needed. A key that failed the proof is wiped and goes nowhere.
"""

import contextlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import structlog

from common.errors import CorruptRowError
from common.forms.chain import Chain
from common.forms.genesis import Genesis
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from nexus.keys import manifest, old_form, records
from nexus.keys.audit_chain import ChainRecord, read_chains
from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.floor import Floor, Standing
from nexus.keys.keyring import Keyring
from nexus.keys.lineage import read_chain
from nexus.keys.manifest import Controls
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import Member, ShardSet
from nexus.keys.successor import StagedKey, Successor
from nexus.policy.rules import PolicySet, decode_policy
from nexus.store.protocol import ControlRow, Meta, Reader, Writer

_CANARY_BODY = b"shardhold-canary-v1"

log = structlog.get_logger("nexus")


@dataclass(frozen=True, slots=True)
class PolicyView:
    """The policies in force, and the names of those that were changed outside Shardhold."""

    policies: PolicySet
    damaged: tuple[str, ...]
    control_revision: int  # of the rows that it shows


@dataclass(frozen=True, slots=True)
class Root:
    """The root key of now, the set that its keepers hold, and the chain that leads to it.

    It is replaced whole, so nobody sees half of a change; and before the floor is raised to the change that replaced
    it, so that no mark of what came after is signed with the key of before.
    """

    root_key: RootKey
    shard_set: ShardSet
    chain: Chain

    def follow(self, successor: Successor, chain: Chain) -> "Root":
        """Return the root that *successor* makes, with the *chain* that leads to it."""
        return Root(successor.root_key or self.root_key, successor.shard_set, chain)

    def release(self) -> None:
        """Wipe the key and the points."""
        self.shard_set.release()
        self.root_key.release()


@dataclass(frozen=True, slots=True)
class OtherSets:
    """The sets beside the current one, as far as keepers have to know of them."""

    pending: Successor | None = None  # of an operation before its flip
    droppable: frozenset[bytes] = frozenset()  # ids of sets that are dead
    kept: frozenset[bytes] = frozenset()  # ids of those that are neither current nor to drop yet
    newest: tuple[int, int] = (0, 0)  # timeline and number up to which sets without a row are dead; zeros: not known
    leaving: tuple[Member, ...] = ()  # members of sets that are not current and may hold a shard yet


@dataclass(slots=True)
class Serving:
    """Owns root key, keyring and points; `release` wipes them."""

    root: Root
    keyring: Keyring
    recovery: records.RecoveryKeyRecord | None  # None: the row does not verify
    view: PolicyView
    floor: Floor
    manifest_format: int = 2  # 1: an older program left it, and it is about to be made anew
    has_old_rows: bool = False  # an older program left them, and they are about to be replaced
    audit_chains: dict[str, ChainRecord | None] = field(default_factory=dict)  # by nexus; None: it does not verify
    is_from_people: bool = False  # custodians brought the root key back
    others: OtherSets = OtherSets()
    _replaced: list[RootKey | ShardSet] = field(default_factory=list)  # somebody who borrowed before may use them yet
    _is_released: bool = False
    _enforcing: threading.Lock = field(default_factory=threading.Lock)
    _succeeding: threading.Lock = field(default_factory=threading.Lock)

    @property
    def genesis(self) -> Genesis:
        return self.root.chain.genesis

    @property
    def cluster_id(self) -> bytes:
        return self.genesis.cluster_id

    @property
    def chain(self) -> Chain:
        return self.root.chain

    @property
    def root_key(self) -> RootKey:
        return self.root.root_key

    @property
    def shard_set(self) -> ShardSet:
        return self.root.shard_set

    def enforce(self, view: PolicyView) -> None:
        """Put *view*, which is committed, in force, unless one of a later change is already."""
        with self._enforcing:
            if view.control_revision > self.view.control_revision:
                self.view = view

    def follow(self, standing: Standing, view: PolicyView) -> None:
        """Take what a change of control rows has left, once it is committed and before the next one begins."""
        self.floor.raise_to(standing)
        self.manifest_format = 2
        self.enforce(view)

    def stage(self, successor: Successor) -> None:
        """Take over *successor*, whose operation is committed; one that was staged before has ended, and is wiped."""
        with self._succeeding:
            before, after = self.others.pending, successor
            if self._is_released:  # a seal did not wait for this commit
                before = after
            else:
                self.others = replace(self.others, pending=after)
        if before is not None:
            before.release()

    def succeed(self, successor: Successor, chain: Chain, others: OtherSets) -> None:
        """Serve with *successor*, whose change is committed, from here on; it is to be followed by `follow`.

        What it replaces is kept for those who borrowed before, until `wipe_replaced`.
        """
        with self._succeeding:
            if self._is_released:  # a seal did not wait for this commit
                successor.release()
                return
            before, staged, shard_set = self.root, successor.key, successor.shard_set
            shard_set.record = records.replace_state(shard_set.record, records.SetState.CURRENT)
            if staged is not None:
                self.keyring.take_current(staged.keyring)
            self.root = before.follow(successor, chain)
            self.others = others
            self._replaced.append(before.shard_set)
            if staged is not None:
                self._replaced.append(before.root_key)

    @property
    def replaced(self) -> tuple[RootKey | ShardSet, ...]:
        """Keys and points that were replaced, and that somebody may use yet."""
        return tuple(self._replaced)

    def wipe_replaced(self, replaced: Iterable[RootKey | ShardSet]) -> None:
        """Wipe what was *replaced*, once nobody uses it any more (`Lifecycle.wait_earlier`)."""
        for one in replaced:
            one.release()
            with contextlib.suppress(ValueError):  # another thread wipes as well
                self._replaced.remove(one)

    def release(self) -> None:
        """Wipe every key."""
        with self._succeeding:
            self._is_released = True
            if self.others.pending is not None:
                self.others.pending.release()
            self.wipe_replaced(self.replaced)
            self.keyring.release()
            self.root.release()

    def become_successor(self, *, renews_key: bool) -> Successor:
        """Return what was proved as what is to follow, which the caller owns; without a new key that is wiped."""
        if renews_key:
            return Successor(self.root.shard_set, StagedKey(self.root.root_key, self.keyring))
        self.keyring.release()
        self.root.root_key.release()
        return Successor(self.root.shard_set)


def make_canary(cluster_id: bytes, keyring: Keyring) -> records.CanaryRecord:
    """Seal the known value that every recovery opens."""
    sealed = seal_value(_CANARY_BODY, _canary_place(cluster_id), keyring)
    return records.CanaryRecord(sealed.kek_id, sealed.dek_id, sealed.wrapped_dek, sealed.value)


def prove(
    candidate: ProtectedBuffer,
    points: Sequence[ProtectedBuffer],
    *,
    meta: Meta,
    rows: Sequence[ControlRow],
    memory: ProtectedMemory,
) -> Serving:
    """Prove that *candidate*, 32 bytes, is the root key of the stored cluster, and open all that it opens.

    Takes over *candidate* and *points*: on failure they are wiped.

    Raises:
        WrongRootKeyError: It does not match the kcv.
        CorruptRowError, DecryptionError: The store is not what this key left; the message names the row.
    """
    with contextlib.ExitStack() as on_failure:
        for buffer in (candidate, *points):
            on_failure.callback(buffer.release)
        current = manifest.find_current_set(meta.cluster_id, rows)
        root_key = RootKey(candidate, cluster_id=meta.cluster_id, generation=current.generation, memory=memory)
        on_failure.callback(root_key.release)
        keyring = Keyring(memory)
        on_failure.callback(keyring.release)
        serving = _prove(root_key, keyring, points, current, meta=meta, rows=rows)
        on_failure.pop_all()
        return serving


def _prove(
    root_key: RootKey,
    keyring: Keyring,
    points: Sequence[ProtectedBuffer],
    current: records.ShardSetRecord,
    *,
    meta: Meta,
    rows: Sequence[ControlRow],
) -> Serving:
    root_key.check(_find_kcv(rows, current.generation))
    verified = manifest.verify(meta, rows, root_key)
    controls = renew(verified, current.generation)
    controls.need(records.GENERATION, str(current.generation))
    controls.need(records.SHARD_SET, str(current.set_number))
    chain = _open_chain(verified, root_key)
    recovery_key = controls.bodies.get(records.RECOVERY_KEY)
    recovery = None if recovery_key is None else records.decode(records.RecoveryKeyRecord, recovery_key)
    _open_keyring(controls, keyring, root_key)
    _check_current_kek(meta, keyring)
    _open_canary(controls, keyring, meta.cluster_id)
    for kind, name in sorted(controls.damaged):
        log.error("control row does not verify", kind=kind, name=name)
    label = current.label(meta.cluster_id, chain.genesis.fingerprint)
    view = build_view(controls, meta)
    floor = Floor(controls.standing)
    shard_set = ShardSet(current, label, points)
    has_old_rows = controls is not verified and not controls.damaged_of_kind(records.ESCROW)
    root = Root(root_key, shard_set, chain)
    return Serving(root, keyring, recovery, view, floor, controls.head.format, has_old_rows, read_chains(controls))


def renew(controls: Controls, generation: int) -> Controls:
    """Return *controls* with their rows in the form of today; they themselves when they are in that form.

    Raises:
        CorruptRowError: A row of the old form, which nothing works without, does not verify.
    """
    if not old_form.is_old(controls.listed, generation):
        return controls
    return replace(controls, bodies=old_form.convert(controls.bodies, generation))


def find_renewal(reader: Reader, root_key: RootKey) -> tuple[dict[records.Key, bytes], set[records.Key]]:
    """Return the rows that replace those of the old form, and those that go; none when all are in the form of today.

    Raises:
        CorruptRowError: The manifest does not verify, or nothing works without a row that does not verify.
    """
    old = manifest.verify(reader.load_meta(), reader.load_controls(), root_key)
    if old.damaged_of_kind(records.ESCROW):
        return {}, set()
    new = renew(old, root_key.generation)
    put = {key: body for key, body in new.bodies.items() if old.bodies.get(key) != body}
    return put, set(old.bodies.keys() - new.bodies.keys())


def build_view(controls: Controls, meta: Meta) -> PolicyView:
    """Compile the policies that verify."""
    policies = [decode_policy(body) for body in controls.of_kind(records.POLICY).values()]
    return PolicyView(PolicySet(policies), tuple(controls.damaged_of_kind(records.POLICY)), meta.control_revision)


def load_view(writer: Writer, root_key: RootKey) -> PolicyView:
    """Compile the policies as the change of *writer* leaves them, where it can still be undone.

    Raises:
        CorruptRowError: The manifest does not verify.
    """
    meta = replace(writer.load_meta(), revision=writer.revision)
    return build_view(manifest.verify(meta, writer.load_controls(), root_key), meta)


def _find_kcv(rows: Sequence[ControlRow], generation: int) -> bytes:
    """Return the key check value, which nothing has verified yet."""
    bodies = {(row.kind, row.name): row.body for row in rows}
    if old_form.is_old(manifest.list_keys(rows), generation):
        return old_form.find_generation(bodies, generation).kcv
    key = records.GENERATION, str(generation)
    if key not in bodies:
        raise CorruptRowError(f"control row {'/'.join(key)} is missing")
    return records.decode(records.GenerationRecord, bodies[key]).kcv


def _open_chain(controls: Controls, root_key: RootKey) -> Chain:
    controls.need(*records.GENESIS)
    chain = read_chain(controls.bodies, controls.listed)
    if (chain.genesis.cluster_id, chain.generation) != (root_key.cluster_id, root_key.generation):
        raise CorruptRowError(f"the chain leads to generation {chain.generation}, the key is of {root_key.generation}")
    if (chain.kcv, chain.audit_public_key) != (root_key.kcv, root_key.public_key):
        raise CorruptRowError("the chain leads to another root key")
    return chain


def _open_keyring(controls: Controls, keyring: Keyring, root_key: RootKey) -> None:
    record = records.decode(records.KeyringRecord, controls.need(records.KEYRING, str(root_key.generation)))
    for name, kek in record.keks.items():
        keyring.open_kek(int(name), kek.wrap, root_key)
    keyring.current_id = record.current_kek_id


def _check_current_kek(meta: Meta, keyring: Keyring) -> None:
    if meta.kek_id not in (0, keyring.current_id):
        raise CorruptRowError(f"store has KEK {meta.kek_id} as its current one, the keyring {keyring.current_id}")


def _open_canary(controls: Controls, keyring: Keyring, cluster_id: bytes) -> None:
    record = records.decode(records.CanaryRecord, controls.need(records.CANARY, str(keyring.current_id)))
    if record.kek_id != keyring.current_id:
        raise CorruptRowError(f"canary/{keyring.current_id} is under KEK {record.kek_id}")
    sealed = SealedValue(record.kek_id, record.dek_id, record.wrapped_dek, record.value)
    if open_value(sealed, _canary_place(cluster_id), keyring) != _CANARY_BODY:
        raise CorruptRowError("canary opens to another value")


def _canary_place(cluster_id: bytes) -> Place:
    # No secret can live here: `shardhold/` is reserved.
    return Place(cluster_id, "shardhold/canary", bytes(16), 1)
