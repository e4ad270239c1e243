"""The proof of a root key: what it takes, and that what fails it is wiped and goes nowhere."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from common.errors import CorruptRowError, DecryptionError, IntegrityError, ShardholdError, WrongRootKeyError
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.first_rows import FIRST_KEK
from nexus.keys.floor import Floor, Standing
from nexus.keys.manifest import MANIFEST
from nexus.keys.opened import PolicyView, load_view, prove
from nexus.keys.replacement import replace_set
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import ControlRow, Meta, Writer
from tests.nexus.cluster import SUPERUSERS, FoundCluster, FoundedCluster, add_set, is_wiped, tamper

READERS = Policy(
    name="readers",
    spiffe_ids=("spiffe://example.org/app",),
    paths=("team/**",),
    permissions=(Permission.READ,),
)


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    """3 of 5, with two policies."""
    return found(policies=[SUPERUSERS, READERS])


def test_the_true_key_opens_all(cluster: FoundedCluster, memory: ProtectedMemory) -> None:
    """Genesis, keyring, set and policies; and releasing it wipes every key."""
    serving = cluster.prove()
    assert serving.cluster_id == cluster.cluster_id
    assert serving.genesis.fingerprint == cluster.genesis
    assert serving.keyring.current_id == FIRST_KEK
    assert serving.shard_set.record == cluster.record
    assert serving.view.damaged == ()
    assert serving.view.policies.decide("spiffe://example.org/app", Permission.READ, "team/db") == "readers"
    serving.release()
    assert is_wiped(memory)


_KEKS = {"2": records.KekRecord(bytes(98), records.KekState.CURRENT, 1)}


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        pytest.param({"generation": 2}, "store is of generation 2, the root key of 1", id="another generation"),
        pytest.param({"kek_id": 9}, f"KEK 9 as its current one, the keyring {FIRST_KEK}", id="another KEK"),
    ],
)
def test_a_store_that_names_other_keys_is_refused(cluster: FoundedCluster, numbers: dict[str, int], says: str) -> None:
    """Numbers of the meta row choose no key: they are compared with what the root key opened."""
    cluster.store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), **numbers)))  # type: ignore[arg-type]
    with pytest.raises(CorruptRowError, match=says):
        cluster.prove()


def test_a_store_of_an_older_program_names_no_keys(cluster: FoundedCluster) -> None:
    """It opens, and stays as it is until its control rows change."""
    cluster.store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), generation=0, kek_id=0)))
    serving = cluster.prove()
    assert serving.floor.position.generation == serving.floor.position.kek_id == 0
    serving.release()


Change = Callable[[Meta, dict[manifest.Key, ControlRow]], Meta | None]


def _drop(kind: str, name: str = "current") -> Change:
    def change(meta: Meta, rows: dict[manifest.Key, ControlRow]) -> None:
        del rows[kind, name]

    return change


def _edit(kind: str, name: str = "current", **changes: object) -> Change:
    """Edit a row in a way that its own digest does not show."""

    def change(meta: Meta, rows: dict[manifest.Key, ControlRow]) -> None:
        kinds: dict[str, type[msgspec.Struct]] = {
            records.GENERATION: records.GenerationRecord,
            records.SHARD_SET: records.ShardSetRecord,
            records.KEYRING: records.KeyringRecord,
            records.CANARY: records.CanaryRecord,
        }
        record = records.decode(kinds[kind], rows[kind, name].body)
        body = records.encode(type(record)(**{**_to_dict(record), **changes}))
        rows[kind, name] = ControlRow(kind, name, body, manifest.row_digest(meta.cluster_id, kind, name, body))

    return change


def _to_dict(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in getattr(record, "__struct_fields__")}  # noqa: B009


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        pytest.param(_drop(records.GENERATION, "1"), CorruptRowError, "generation/1", id="no generation"),
        pytest.param(_drop(records.KEYRING, "1"), CorruptRowError, "keyring/1", id="no keyring"),
        pytest.param(_drop(records.CANARY, "2"), CorruptRowError, "canary/2", id="no canary"),
        pytest.param(_drop("genesis"), CorruptRowError, "genesis/current", id="no genesis"),
        pytest.param(_drop(records.SHARD_SET, "1"), CorruptRowError, "0 shard sets", id="no set"),
        pytest.param(_drop(*MANIFEST), CorruptRowError, "manifest is missing", id="no manifest"),
        pytest.param(
            _edit(records.GENERATION, "1", kcv=bytes(32)), WrongRootKeyError, "does not match", id="another kcv"
        ),
        pytest.param(_edit(records.KEYRING, "1", keks=_KEKS), CorruptRowError, "keyring/1", id="another keyring"),
        pytest.param(_edit(records.CANARY, "2", value=b"x"), CorruptRowError, "canary", id="another canary"),
        pytest.param(_edit(records.SHARD_SET, "1", threshold=2), CorruptRowError, "shard-set/1", id="another t"),
        pytest.param(
            _edit(records.SHARD_SET, "1", generation=2), CorruptRowError, "shard-set/1", id="another generation"
        ),
        pytest.param(
            _edit(records.SHARD_SET, "1", generation=2**64), CorruptRowError, "0 shard sets", id="absurd generation"
        ),
        pytest.param(
            lambda meta, rows: replace(meta, cluster_id=bytes(16)),
            CorruptRowError,
            "0 shard sets",
            id="other cluster",
        ),
        pytest.param(lambda meta, rows: replace(meta, timeline=2), CorruptRowError, "manifest", id="other timeline"),
    ],
)
def test_a_store_that_this_key_did_not_leave_is_refused_and_the_key_wiped(
    cluster: FoundedCluster, memory: ProtectedMemory, change: Change, error: type[ShardholdError], message: str
) -> None:
    """The row is named, and neither candidate nor points stay in memory."""
    meta, loaded = cluster.load()
    rows = {(row.kind, row.name): row for row in loaded}
    meta = change(meta, rows) or meta
    candidate, points = cluster.protect(cluster.root_key), cluster.points()
    with pytest.raises(error, match=message):
        prove(candidate, points, meta=meta, rows=list(rows.values()), memory=memory)
    assert is_wiped(memory)


def test_a_set_that_the_manifest_does_not_list_is_never_the_current_one(
    cluster: FoundedCluster, memory: ProtectedMemory, tmp_path: Path
) -> None:
    """An unlisted set is refused in place of the true one, under an earlier number: its keepers would get shards."""
    serving = cluster.prove()
    replace_set(cluster.store, serving, lambda writer, key: None, lambda meta: meta, memory)
    assert serving.shard_set.record.set_number == 2
    serving.release()
    add_set(tmp_path, cluster, set_number=1)
    assert cluster.prove_without_points().shard_set.record.set_number == 2
    tamper(tmp_path, "DELETE FROM control WHERE kind = 'shard-set' AND name = '2'")
    with pytest.raises(CorruptRowError, match="0 shard sets are current, want 1; does not verify: shard-set/added"):
        cluster.prove_without_points()


def test_a_wrong_key_is_refused_and_wiped(cluster: FoundedCluster, memory: ProtectedMemory) -> None:
    """The kcv refuses a wrong key before that key authenticates or decrypts anything."""
    meta, rows = cluster.load()
    with pytest.raises(WrongRootKeyError, match="generation 1"):
        prove(cluster.protect(os.urandom(32)), cluster.points(), meta=meta, rows=rows, memory=memory)
    assert is_wiped(memory)


def find_floor(cluster: FoundedCluster) -> Floor:
    """What a nexus that has just proved the store holds."""
    serving = cluster.prove()
    serving.release()
    return serving.floor


def test_a_keyring_of_another_key_is_refused_even_under_a_true_manifest(
    cluster: FoundedCluster, memory: ProtectedMemory
) -> None:
    """Every KEK has to open: the proof is more than the manifest."""
    root_key = cluster.make_root_key()
    kek = records.KekRecord(os.urandom(98), records.KekState.CURRENT, 1)
    key, body = (records.KEYRING, "1"), records.encode(records.KeyringRecord({"2": kek}))
    floor = find_floor(cluster)
    cluster.store.write(lambda writer: manifest.change(writer, root_key, floor, put={key: body}))
    root_key.release()
    with pytest.raises(DecryptionError):
        cluster.prove()
    assert is_wiped(memory)


@pytest.mark.parametrize("kind", ["value", "wrapped_dek", "dek_id"])
def test_a_canary_that_does_not_open_is_refused_even_under_a_true_manifest(
    cluster: FoundedCluster, memory: ProtectedMemory, kind: str
) -> None:
    """A known value is opened at each recovery."""

    def damage(writer: Writer) -> None:
        row = writer.load_control(records.CANARY, "2")
        assert row is not None
        stored = _to_dict(records.decode(records.CanaryRecord, row.body))
        stored[kind] = os.urandom(len(getattr(records.decode(records.CanaryRecord, row.body), kind)))
        body = records.encode(records.CanaryRecord(**stored))  # type: ignore[arg-type]
        manifest.change(writer, root_key, floor, put={(records.CANARY, "2"): body})

    floor = find_floor(cluster)
    root_key = cluster.make_root_key()
    cluster.store.write(damage)
    root_key.release()
    with pytest.raises(IntegrityError):
        cluster.prove()
    assert is_wiped(memory)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("DELETE FROM control WHERE kind = 'escrow'", id="escrow removed"),
        pytest.param("UPDATE control SET body = x'00' WHERE kind = 'escrow'", id="escrow edited"),
        pytest.param("DELETE FROM control WHERE kind = 'recovery-key'", id="recovery key removed"),
        pytest.param("UPDATE control SET body = x'00' WHERE kind = 'recovery-key'", id="recovery key edited"),
        pytest.param("INSERT INTO control VALUES ('setting', 'x', x'00', zeroblob(32))", id="setting added"),
        pytest.param("INSERT INTO control VALUES ('shard-set', '7', x'00', zeroblob(32))", id="set added, no JSON"),
    ],
)
def test_a_row_that_recovery_does_not_need_is_refused_alone(cluster: FoundedCluster, tmp_path: Path, sql: str) -> None:
    """The nexus comes back, and workloads are served."""
    tamper(tmp_path, sql)
    view = cluster.prove().view
    assert view.damaged == ()
    assert len(view.policies.policies) == 2


@pytest.mark.parametrize(
    ("sql", "damaged"),
    [
        pytest.param("DELETE FROM control WHERE kind = 'policy' AND name = 'readers'", "readers", id="removed"),
        pytest.param("UPDATE control SET body = x'7b7d' WHERE name = 'readers'", "readers", id="edited"),
        pytest.param("INSERT INTO control VALUES ('policy', 'evil', x'00', zeroblob(32))", "evil", id="added"),
    ],
)
def test_a_policy_that_was_changed_in_the_database_is_named(
    cluster: FoundedCluster, tmp_path: Path, sql: str, damaged: str
) -> None:
    """The nexus comes back all the same; the gate authorises nobody by policy then."""
    tamper(tmp_path, sql)
    assert cluster.prove().view.damaged == (damaged,)


def test_a_view_of_an_earlier_change_never_replaces_a_later_one(cluster: FoundedCluster) -> None:
    """Whatever the order in which they are put in force."""
    serving = cluster.prove()

    def delete(name: str) -> PolicyView:
        def change(writer: Writer) -> tuple[Standing, PolicyView]:
            standing = manifest.change(writer, serving.root_key, serving.floor, delete=[(records.POLICY, name)])
            return standing, load_view(writer, serving.root_key)

        standing, view = cluster.store.write(change)
        serving.floor.raise_to(standing)
        return view

    first, second = delete("readers"), delete("superusers")
    for view in (second, first):
        serving.enforce(view)
        assert serving.view.policies.policies == ()
