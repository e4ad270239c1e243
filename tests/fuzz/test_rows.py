"""What someone who can write the database puts into it: control rows, wraps, values."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CorruptRowError, DecryptionError, InvalidArgumentError
from common.forms.audit.entry import Entry, decode_entry
from common.forms.codec import fields, u64
from common.keys.protected import Level, ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.keyring import Keyring
from nexus.keys.root_key import RootKey
from nexus.keys.wrap import unwrap_key, wrap_key
from nexus.policy.rules import Permission, Policy, PolicySet, decode_policy, encode_policy
from nexus.store.protocol import ControlRow, Meta, Phase
from tests.fuzz.budget import budget
from tests.fuzz.mutations import assert_is_short, hostile, hostile_fields, hostile_json, hostile_text

CLUSTER_ID = b"c" * 16
MEMBER = records.MemberRecord("keeper-1", "spiffe://example.org/shardhold/keeper/keeper-1", "k:8443", 1, b"d" * 32)
RECORDS: dict[type[msgspec.Struct], msgspec.Struct] = {
    records.GenesisRecord: records.GenesisRecord(b"record"),
    records.LinkRecord: records.LinkRecord(b"record"),
    records.GenerationRecord: records.GenerationRecord(records.GenerationState.ACTIVE, b"k" * 32, 1, 2),
    records.KeyringRecord: records.KeyringRecord(
        {
            "1": records.KekRecord(b"w" * 98, records.KekState.OLD, 1),
            "2": records.KekRecord(b"w" * 98, records.KekState.CURRENT, 1),
        }
    ),
    records.CanaryRecord: records.CanaryRecord(1, b"d" * 16, b"w" * 98, b"v"),
    records.ShareHashRecord: records.ShareHashRecord(b"s" * 16, b"d" * 32),
    records.RecoveryKeyRecord: records.RecoveryKeyRecord(b"p" * 1216, 1, (records.ShareHashRecord(b"s", b"d"),)),
    records.EscrowRecord: records.EscrowRecord((records.EscrowCopy("recovery-key", b"r" * 32, b"sealed"),)),
    records.MemberRecord: MEMBER,
    records.ShardSetRecord: records.ShardSetRecord(records.SetState.CURRENT, 1, b"i" * 16, 1, 1, 2, (MEMBER, MEMBER)),
}
POLICY = Policy(
    name="app", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**", "a-*"), permissions=tuple(Permission)
)
ENTRY = Entry(at=1, actor="spiffe://example.org/a", action="secret.get", path="a/b", version=3)
META = Meta(Phase.INITIALISED, CLUSTER_ID, False, 1, 1, 1, 1, 1, 1, 1, 1)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3)  # what SQLite can hold

MEMORY = ProtectedMemory(highest=Level.LOCKED)


def protect(byte: bytes) -> memoryview:
    buffer = MEMORY.allocate(32)
    buffer.view[:] = byte * 32
    return buffer.view


@pytest.fixture(scope="module")
def root_key() -> Iterator[RootKey]:
    """Return a root key that is the same in each run."""
    buffer = MEMORY.allocate(32)
    buffer.view[:] = b"r" * 32
    key = RootKey(buffer, cluster_id=CLUSTER_ID, generation=1, memory=MEMORY)
    yield key
    key.release()


@pytest.fixture(scope="module")
def keyring(root_key: RootKey) -> Iterator[Keyring]:
    """Return a keyring of one KEK."""
    keyring = Keyring(MEMORY)
    keyring.make_kek(1, root_key)
    yield keyring
    keyring.release()


@pytest.mark.parametrize("kind", RECORDS, ids=lambda kind: kind.__name__)
@budget(3)
@given(data=st.data())
def test_record(kind: type[msgspec.Struct], data: st.DataObject) -> None:
    """A body is a record of its kind that encodes and decodes to the same, or a corrupt row."""
    body = data.draw(hostile_json(records.encode(RECORDS[kind])))
    try:
        record = records.decode(kind, body)
    except CorruptRowError:
        return
    assert records.decode(kind, records.encode(record)) == record


@budget(3)
@given(st.lists(hostile_json(records.encode(RECORDS[records.ShardSetRecord])), max_size=3))
def test_current_set(bodies: list[bytes]) -> None:
    """Whatever rows there are, exactly one is the current set, or none is used."""
    rows = [
        ControlRow(
            records.SHARD_SET,
            str(number),
            body,
            manifest.row_digest(CLUSTER_ID, records.SHARD_SET, str(number), body),
        )
        for number, body in enumerate(bodies)
    ]
    listed = (part for row in rows for part in (row.kind.encode(), row.name.encode(), row.digest))
    head = (b"shardhold-manifest-v1", CLUSTER_ID, u64(1), u64(1), u64(1))
    try:
        current = manifest.find_current_set(
            CLUSTER_ID, [*rows, ControlRow(*manifest.MANIFEST, fields(*head, *listed), bytes(32))]
        )
    except CorruptRowError:
        return
    assert current.state is records.SetState.CURRENT


@budget(5)
@given(hostile_json(encode_policy(POLICY)))
def test_policy(body: bytes) -> None:
    """A body is a policy that compiles and decides, or a corrupt row."""
    try:
        policy = decode_policy(body)
    except CorruptRowError:
        return
    decided = PolicySet([policy]).decide("spiffe://example.org/team/app", Permission.READ, "team/app")
    assert decided in (None, policy.name)


@budget(5)
@given(
    hostile_text("app", "a" * 65),
    st.lists(hostile_text("spiffe://example.org/team/*", "spiffe://*/x", "spiffe://a/shardhold/**"), max_size=3),
    st.lists(hostile_text("team/**", "a-*-b", "shardhold/x"), max_size=3),
    hostile_text("spiffe://example.org/team/app", "spiffe://example.org/"),
    hostile_text("team/app", "a--b", ""),
)
def test_policy_of_a_caller(name: str, spiffe_ids: list[str], paths: list[str], caller: str, path: str) -> None:
    """A caller's policy compiles and decides about any text, or is an invalid argument."""
    policy = Policy(name=name, spiffe_ids=tuple(spiffe_ids), paths=tuple(paths), permissions=(Permission.READ,))
    try:
        policies = PolicySet([policy])
    except InvalidArgumentError as exc:
        assert_is_short(exc, 600)
        return
    assert policies.decide(caller, Permission.READ, path) in (None, name)
    assert policies.decide(caller, Permission.WRITE, path) is None


@budget(3)
@given(hostile_json(ENTRY.encode()))
def test_audit_entry(encoded: bytes) -> None:
    """A row of the outbox is an entry that encodes and decodes to the same, or a corrupt row."""
    try:
        entry = decode_entry(encoded)
    except CorruptRowError:
        return
    assert decode_entry(entry.encode()) == entry
    assert len(encoded.splitlines()) == 1, "it would break the line that it becomes a part of"


KEK = protect(b"k")
WRAP = wrap_key(protect(b"d"), under=KEK, aad=b"place", memory=MEMORY)


@budget(5)
@given(hostile(WRAP), hostile(b"place") | st.just(b"place"))
def test_wrap(wrap: bytes, aad: bytes) -> None:
    """A wrap opens whole at its place, or not at all: then the buffer is unchanged."""
    into = bytearray(b"\xaa" * 32)
    try:
        unwrap_key(wrap, under=KEK, aad=aad, memory=MEMORY, into=memoryview(into))
    except DecryptionError:
        assert into == b"\xaa" * 32
        return
    assert (wrap, aad, bytes(into)) == (WRAP, b"place", b"d" * 32)


@budget(5)
@given(data=st.data())
def test_value(keyring: Keyring, data: st.DataObject) -> None:
    """A row opens to what was put at its place, or not at all, whatever numbers it contains."""
    place = Place(CLUSTER_ID, "team/app", b"i" * 16, 1)
    true = seal_value(b"hunter2", place, keyring)
    sealed = SealedValue(
        data.draw(st.just(true.kek_id) | NUMBERS),
        data.draw(st.just(true.dek_id) | hostile(true.dek_id)),
        data.draw(st.just(true.wrapped_dek) | hostile(true.wrapped_dek)),
        data.draw(st.just(true.value) | hostile(true.value)),
    )
    try:
        opened = open_value(sealed, place, keyring)
    except (CorruptRowError, DecryptionError):
        return
    assert (opened, sealed) == (b"hunter2", true)


def make_rows(root_key: RootKey, listed: bytes) -> list[ControlRow]:
    digest = manifest.row_digest(CLUSTER_ID, "policy", "app", b"body")
    rows = [ControlRow("policy", "app", b"body", digest)]
    return [*rows, ControlRow(*manifest.MANIFEST, listed, root_key.authenticate(listed))]


def list_manifest(root_key: RootKey) -> list[bytes]:
    digest = manifest.row_digest(CLUSTER_ID, "policy", "app", b"body")
    one = (1).to_bytes(8, "big")
    return [b"shardhold-manifest-v1", CLUSTER_ID, one, one, one, b"policy", b"app", digest]


ROWS = st.lists(
    st.builds(
        ControlRow,
        st.sampled_from(["policy", "manifest", "kcv", "", "é"]) | st.text(max_size=3),
        st.sampled_from(["app", "current", "1"]) | st.text(max_size=3),
        hostile(b"body"),
        hostile(bytes(32)),
    ),
    max_size=4,
)


@budget(5)
@given(st.data(), ROWS, st.booleans())
def test_control_rows(root_key: RootKey, data: st.DataObject, extra: list[ControlRow], is_signed: bool) -> None:
    """Only rows that the manifest lists are accepted, whatever is beside them and in it, signed or not."""
    listed = data.draw(hostile_fields(list_manifest(root_key)))
    rows = make_rows(root_key, listed)
    if not is_signed:
        rows[-1] = ControlRow(*manifest.MANIFEST, listed, data.draw(st.binary(min_size=32, max_size=32)))
    try:
        controls = manifest.verify(META, [*rows, *extra], root_key)
    except CorruptRowError:
        return
    assert is_signed or any((row.kind, row.name) == manifest.MANIFEST for row in extra)
    assert set(controls.bodies) <= {("policy", "app")}
    assert controls.damaged.isdisjoint(controls.bodies)


def test_the_rows_above_are_good(root_key: RootKey) -> None:
    """The unchanged seeds of the mutations are accepted."""
    rows = make_rows(root_key, b"".join(len(part).to_bytes(4, "big") + part for part in list_manifest(root_key)))
    assert manifest.verify(META, rows, root_key).bodies == {("policy", "app"): b"body"}
    for kind, record in RECORDS.items():
        assert records.decode(kind, records.encode(record)) == record
    assert decode_policy(encode_policy(POLICY)) == POLICY
