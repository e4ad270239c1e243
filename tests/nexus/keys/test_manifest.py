"""Control rows under the manifest: whoever changes the database without the control key is found out."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from common.errors import CorruptRowError, StoreLostError
from common.forms.codec import fields
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest
from nexus.keys.floor import Floor, Standing
from nexus.keys.manifest import MANIFEST, NONE_BEFORE, Controls, Head, Key, row_digest
from nexus.keys.root_key import RootKey
from nexus.store.protocol import ControlRow, Meta, Phase, Store, Writer

CLUSTER = os.urandom(16)
BODIES: dict[Key, bytes] = {
    ("kcv", "1"): b"check",
    ("policy", "a"): b"rule a",
    ("policy", "b"): b"rule b",
    ("keyring", "current"): b"wraps",
}
Rows = dict[Key, ControlRow]


@pytest.fixture
def root_key(memory: ProtectedMemory) -> RootKey:
    """A root key of the cluster."""
    key = memory.allocate(32)
    key.fill_random()
    return RootKey(key, cluster_id=CLUSTER, generation=1, memory=memory)


@pytest.fixture
def saved(store: Store, root_key: RootKey) -> Store:
    """The store with the first rows under a manifest."""

    def write(writer: Writer) -> None:
        meta = replace(writer.load_meta(), phase=Phase.INITIALISED, cluster_id=CLUSTER, timeline=1)
        writer.save_meta(manifest.first_manifest(meta, BODIES, root_key, writer))

    store.write(write)
    return store


def load(store: Store) -> tuple[Meta, Rows]:
    with store.read() as reader:
        return reader.load_meta(), {(row.kind, row.name): row for row in reader.load_controls()}


def verify(store: Store, root_key: RootKey) -> Controls:
    meta, rows = load(store)
    return manifest.verify(meta, rows.values(), root_key)


def find_floor(store: Store, root_key: RootKey) -> Floor:
    """What a nexus that has just proved the store holds."""
    return Floor(verify(store, root_key).standing)


def change(
    store: Store, root_key: RootKey, *, put: dict[Key, bytes] | None = None, delete: list[Key] | None = None
) -> None:
    floor = find_floor(store, root_key)
    store.write(lambda writer: manifest.change(writer, root_key, floor, put=put, delete=delete or []))


def test_what_was_saved_verifies(saved: Store, root_key: RootKey) -> None:
    """All rows, none damaged, and the control revision went up with them."""
    controls = verify(saved, root_key)
    assert controls.bodies == BODIES
    assert controls.damaged == frozenset()
    assert load(saved)[0].control_revision == 1
    assert controls.need("kcv", "1") == b"check"
    assert controls.of_kind("policy") == {"a": b"rule a", "b": b"rule b"}


def _add(rows: Rows) -> None:
    digest = row_digest(CLUSTER, "policy", "evil", b"allow all")
    rows["policy", "evil"] = ControlRow("policy", "evil", b"allow all", digest)


def _edit(rows: Rows) -> None:
    rows["policy", "a"] = replace(rows["policy", "a"], body=b"allow all")


def _edit_with_digest(rows: Rows) -> None:
    rows["policy", "a"] = ControlRow("policy", "a", b"allow all", row_digest(CLUSTER, "policy", "a", b"allow all"))


def _edit_digest(rows: Rows) -> None:
    rows["policy", "a"] = replace(rows["policy", "a"], digest=bytes(32))


def _remove(rows: Rows) -> None:
    del rows["policy", "a"]


def _swap(rows: Rows) -> None:
    one, two = rows["policy", "a"], rows["policy", "b"]
    rows["policy", "a"] = replace(one, body=two.body, digest=two.digest)
    rows["policy", "b"] = replace(two, body=one.body, digest=one.digest)


def _rename(rows: Rows) -> None:
    rows["policy", "c"] = replace(rows.pop(("policy", "a")), name="c")


def _change_kind(rows: Rows) -> None:
    rows["setting", "a"] = replace(rows.pop(("policy", "a")), kind="setting")


def _second_manifest(rows: Rows) -> None:
    rows["manifest", "other"] = replace(rows[MANIFEST], name="other")


@pytest.mark.parametrize(
    ("tamper", "damaged"),
    [
        pytest.param(_add, {("policy", "evil")}, id="added"),
        pytest.param(_edit, {("policy", "a")}, id="edited"),
        pytest.param(_edit_with_digest, {("policy", "a")}, id="edited, digest computed anew"),
        pytest.param(_edit_digest, {("policy", "a")}, id="digest edited"),
        pytest.param(_remove, {("policy", "a")}, id="removed"),
        pytest.param(_swap, {("policy", "a"), ("policy", "b")}, id="swapped"),
        pytest.param(_rename, {("policy", "a"), ("policy", "c")}, id="renamed"),
        pytest.param(_change_kind, {("policy", "a"), ("setting", "a")}, id="of another kind"),
        pytest.param(_second_manifest, {("manifest", "other")}, id="a second manifest"),
    ],
)
def test_each_row_that_was_changed_is_named_and_refused_alone(
    saved: Store, root_key: RootKey, tamper: Callable[[Rows], None], damaged: set[Key]
) -> None:
    """Exactly those; the others go on working."""
    meta, rows = load(saved)
    tamper(rows)
    controls = manifest.verify(meta, rows.values(), root_key)
    assert controls.damaged == damaged
    assert controls.bodies == {key: body for key, body in BODIES.items() if key not in damaged}
    for key in damaged:
        with pytest.raises(CorruptRowError, match="/".join(key)):
            controls.need(*key)
    assert controls.damaged_of_kind("policy") == sorted(name for kind, name in damaged if kind == "policy")


def _forget_manifest(meta: Meta, rows: Rows) -> Meta:
    del rows[MANIFEST]
    return meta


def _edit_manifest(meta: Meta, rows: Rows) -> Meta:
    body = rows[MANIFEST].body.replace(row_digest(CLUSTER, "policy", "a", b"rule a"), bytes(32))
    rows[MANIFEST] = replace(rows[MANIFEST], body=body)
    return meta


def _hash_manifest(meta: Meta, rows: Rows) -> Meta:
    body = rows[MANIFEST].body
    rows[MANIFEST] = replace(rows[MANIFEST], digest=row_digest(CLUSTER, *MANIFEST, body))
    return meta


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        pytest.param(_forget_manifest, "missing", id="missing"),
        pytest.param(_edit_manifest, "does not verify under the control key", id="edited"),
        pytest.param(_hash_manifest, "does not verify under the control key", id="a digest in place of the HMAC"),
        pytest.param(lambda meta, rows: replace(meta, timeline=2), "another cluster, timeline", id="another timeline"),
        pytest.param(lambda meta, rows: replace(meta, revision=meta.revision - 1), "earlier revision", id="put back"),
        pytest.param(lambda meta, rows: replace(meta, control_revision=2), "control revision", id="an older manifest"),
        pytest.param(lambda meta, rows: replace(meta, control_revision=0), "control revision", id="a newer manifest"),
        pytest.param(lambda meta, rows: replace(meta, cluster_id=bytes(16)), "another cluster", id="another cluster"),
    ],
)
def test_a_manifest_that_is_not_the_present_one_is_refused(
    saved: Store, root_key: RootKey, tamper: Callable[[Meta, Rows], Meta], message: str
) -> None:
    """No row is believed under a manifest that is not the present one."""
    meta, rows = load(saved)
    meta = tamper(meta, rows)
    with pytest.raises(CorruptRowError, match=message):
        manifest.verify(meta, rows.values(), root_key)


def test_a_manifest_under_another_root_key_is_refused(saved: Store, memory: ProtectedMemory) -> None:
    """The HMAC is under this cluster's control key."""
    key = memory.allocate(32)
    key.fill_random()
    with pytest.raises(CorruptRowError, match="control key"):
        verify(saved, RootKey(key, cluster_id=CLUSTER, generation=1, memory=memory))


def test_a_whole_older_set_of_rows_with_its_manifest_is_refused(saved: Store, root_key: RootKey) -> None:
    """Rows and manifest put back together do not match the store's control revision."""
    _, older = load(saved)
    change(saved, root_key, delete=[("policy", "a")])
    meta, _ = load(saved)
    with pytest.raises(CorruptRowError, match="control revision"):
        manifest.verify(meta, older.values(), root_key)


def test_changes_chain(saved: Store, root_key: RootKey) -> None:
    """Put, replace and delete, each under the next control revision; the sum of them verifies."""
    change(saved, root_key, put={("policy", "c"): b"rule c", ("policy", "a"): b"rule a2"})
    change(saved, root_key, delete=[("policy", "b")])
    controls = verify(saved, root_key)
    assert controls.damaged == frozenset()
    assert controls.of_kind("policy") == {"a": b"rule a2", "c": b"rule c"}
    assert load(saved)[0].control_revision == 3


def test_a_change_of_control_rows_names_the_generation(saved: Store, root_key: RootKey) -> None:
    """From the first one on in a store of an older program, which knew none; the KEK is for those who replace it."""
    assert load(saved)[0].generation == 1
    saved.write(lambda writer: writer.save_meta(replace(writer.load_meta(), generation=0)))
    change(saved, root_key, put={("policy", "a"): b"rule a2"})
    meta = load(saved)[0]
    assert (meta.generation, meta.kek_id) == (1, 0)
    floor = find_floor(saved, root_key)
    edit = saved.write(
        lambda writer: manifest.change(writer, root_key, floor, edit=lambda meta: replace(meta, kek_id=5)), alone=True
    )
    assert edit.position == load(saved)[0].position
    assert edit.position.kek_id == 5


def test_a_change_that_raises_leaves_rows_and_manifest(saved: Store, root_key: RootKey) -> None:
    """It happens whole or not at all."""

    floor = find_floor(saved, root_key)

    def fail(writer: Writer) -> None:
        manifest.change(writer, root_key, floor, put={("policy", "c"): b"rule c"})
        raise CorruptRowError("something else")

    before = load(saved)
    with pytest.raises(CorruptRowError, match="something else"):
        saved.write(fail)
    assert load(saved) == before


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda writer: writer.delete_control(*MANIFEST), id="missing"),
        pytest.param(
            lambda writer: writer.save_control(replace(writer.load_control(*MANIFEST), digest=bytes(32))), id="edited"
        ),
    ],
)
def test_nothing_is_changed_on_top_of_a_damaged_manifest(
    saved: Store, root_key: RootKey, damage: Callable[[Writer], object]
) -> None:
    """A change would bless what is damaged; it is refused and nothing is written."""

    floor = find_floor(saved, root_key)

    def tamper(writer: Writer) -> None:
        damage(writer)
        meta = writer.load_meta()
        writer.save_meta(replace(meta, control_revision=meta.control_revision + 1))
        with pytest.raises((CorruptRowError, StoreLostError)):
            manifest.change(writer, root_key, floor, put={("policy", "c"): b"rule c"})
        assert writer.load_control("policy", "c") is None

    saved.write(tamper)


def test_a_change_leaves_rows_damaged_that_it_does_not_touch(saved: Store, root_key: RootKey) -> None:
    """The manifest keeps the digest of what was there: an edited row is not blessed by the next change."""

    floor = find_floor(saved, root_key)

    def edit(writer: Writer) -> None:
        writer.save_control(ControlRow("policy", "a", b"allow all", row_digest(CLUSTER, "policy", "a", b"allow all")))
        manifest.change(writer, root_key, floor, put={("policy", "c"): b"rule c"})

    saved.write(edit)
    assert verify(saved, root_key).damaged == {("policy", "a")}


@pytest.mark.parametrize("key", [("policy", "a"), ("policy", "added"), ("policy", "b")])
def test_putting_or_deleting_a_damaged_row_heals_it(saved: Store, root_key: RootKey, key: Key) -> None:
    """Whether it was edited, added or removed."""

    floor = find_floor(saved, root_key)

    def damage(writer: Writer) -> None:
        meta = writer.load_meta()
        for name in ("a", "added"):
            writer.save_control(ControlRow("policy", name, b"evil", bytes(32)))
        writer.delete_control("policy", "b")
        writer.save_meta(replace(meta, control_revision=meta.control_revision + 1))
        writer.save_meta(meta)
        manifest.change(writer, root_key, floor, put={("policy", "other"): b"x"})

    saved.write(damage)
    assert key in verify(saved, root_key).damaged
    change(saved, root_key, put={key: b"good"})
    assert key not in verify(saved, root_key).damaged
    assert verify(saved, root_key).bodies[key] == b"good"
    change(saved, root_key, delete=[key])
    controls = verify(saved, root_key)
    assert key not in controls.damaged
    assert key not in controls.bodies


def head_of(store: Store, root_key: RootKey) -> Head:
    return verify(store, root_key).head


def test_the_head_says_where_the_store_stood(saved: Store, root_key: RootKey) -> None:
    """Each manifest names the one before by its digest, and the first one none."""
    first = verify(saved, root_key)
    assert first.head == Head(CLUSTER, 1, 1, 1, generation=1, epoch=0, before=NONE_BEFORE)
    saved.write(lambda writer: writer.save_meta(replace(writer.load_meta(), epoch=5)))
    change(saved, root_key, put={("policy", "c"): b"rule c"})
    second = verify(saved, root_key)
    assert second.head == Head(CLUSTER, 1, 2, 3, generation=1, epoch=5, before=first.standing.manifest)
    assert second.standing.position == load(saved)[0].position
    change(saved, root_key)
    assert head_of(saved, root_key).before == second.standing.manifest


def test_a_change_says_what_it_leaves(saved: Store, root_key: RootKey) -> None:
    """The floor that is raised to it takes the next change."""
    floor = find_floor(saved, root_key)
    for number in range(3):
        put = {("policy", "c"): b"%d" % number}
        standing = saved.write(partial(manifest.change, root_key=root_key, floor=floor, put=put))
        assert standing == verify(saved, root_key).standing
        floor.raise_to(standing)


def test_a_change_is_made_on_top_of_what_was_left_alone(saved: Store, root_key: RootKey) -> None:
    """Rows, manifest and control revision put back together verify, and nothing is changed on top of them."""
    _, older = load(saved)
    change(saved, root_key, delete=[("policy", "a")])
    floor = find_floor(saved, root_key)

    def put_back(writer: Writer) -> None:
        for row in older.values():
            writer.save_control(row)
        # A control revision in between, so that the store lets it pass; then as it was.
        writer.save_meta(replace(writer.load_meta(), control_revision=9))

    saved.write(put_back)
    saved.write(lambda writer: writer.save_meta(replace(writer.load_meta(), control_revision=1)))
    meta, rows = load(saved)
    assert manifest.verify(meta, rows.values(), root_key).of_kind("policy") == {"a": b"rule a", "b": b"rule b"}
    with pytest.raises(StoreLostError, match="was put back: it is at .*control revision 1"):
        saved.write(lambda writer: manifest.change(writer, root_key, floor, delete=[("policy", "b")]))
    assert load(saved) == (meta, rows)


def test_another_manifest_with_the_same_numbers_is_not_built_on(saved: Store, root_key: RootKey) -> None:
    """As when a change was lost, and another one took its number."""
    change(saved, root_key, put={("policy", "c"): b"rule c"})
    floor = find_floor(saved, root_key)
    other = Floor(Standing(floor.position, b"another one of 32 bytes, or more"))
    with pytest.raises(StoreLostError, match="manifest is not the one that this nexus left"):
        saved.write(lambda writer: manifest.change(writer, root_key, other))


def renew(store: Store, root_key: RootKey, **changes: int) -> None:
    """Make the manifest anew with other numbers in its head, as nobody without the key can."""

    def write(writer: Writer) -> None:
        row = writer.load_control(*MANIFEST)
        assert row is not None
        head, listed = manifest._parse_manifest(row.body)
        body = manifest._encode_manifest(replace(head, **changes), listed)  # type: ignore[arg-type]
        writer.save_control(ControlRow(*MANIFEST, body, root_key.authenticate(body)))
        writer.save_meta(replace(writer.load_meta(), control_revision=changes.get("control_revision", 2)))

    store.write(write)


def test_a_manifest_of_the_first_format_is_read_and_made_anew(saved: Store, root_key: RootKey) -> None:
    """By the first change; it has no generation, no epoch and no manifest before."""
    renew(saved, root_key, format=1, generation=0, epoch=0, control_revision=2)
    first = verify(saved, root_key)
    assert (first.head.format, first.bodies, first.damaged) == (1, BODIES, frozenset())
    change(saved, root_key)
    second = verify(saved, root_key)
    assert (second.head.format, second.head.before) == (2, first.standing.manifest)
    assert second.bodies == BODIES


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({"generation": 2}, "generation 2, the root key of 1", id="another generation"),
        pytest.param({"epoch": 1}, "earlier epoch than its control manifest: it was put back", id="a later epoch"),
        pytest.param({"revision": 99}, "earlier revision than its control manifest", id="a later revision"),
    ],
)
def test_a_true_manifest_of_a_store_that_is_further_is_refused(
    saved: Store, root_key: RootKey, changes: dict[str, int], says: str
) -> None:
    """The store was put back under it, or its root key is another one."""
    renew(saved, root_key, control_revision=2, **changes)
    with pytest.raises(CorruptRowError, match=says):
        verify(saved, root_key)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(lambda head: [b"shardhold-manifest-v3", *head[1:]], id="another format"),
        pytest.param(lambda head: head[:-1], id="a part less"),
        pytest.param(lambda head: [*head[:-1], bytes(31)], id="a digest of 31 bytes"),
        pytest.param(lambda head: [*head[:2], bytes(9), *head[3:]], id="a number of nine bytes"),
    ],
)
def test_a_head_of_another_form_does_not_decode(
    saved: Store, root_key: RootKey, parts: Callable[[list[bytes]], list[bytes]]
) -> None:
    """Even under a true HMAC."""
    meta, rows = load(saved)
    body = fields(*parts(head_of(saved, root_key).encode()))
    rows[MANIFEST] = ControlRow(*MANIFEST, body, root_key.authenticate(body))
    with pytest.raises(CorruptRowError, match="does not decode"):
        manifest.verify(meta, rows.values(), root_key)
