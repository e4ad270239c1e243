"""Our own formats, decoded from arbitrary input: refused with the documented error, or really of that format."""

from hypothesis import given
from hypothesis import strategies as st

from common.errors import ChainError, CorruptRowError, DecryptionError, InvalidArgumentError, MarkError, StatementError
from common.forms.chain import MAX_LINK_SIZE, decode_link, verify_chain
from common.forms.codec import fields, parse_fields
from common.forms.genesis import Genesis, decode_genesis
from common.forms.mark import SignedMark, verify_mark
from common.keys.recovery_key import derive_public_key, open_sealed
from common.keys.recovery_key import seal as seal_escrow
from common.keys.sealing import OneShotKey, seal
from common.keys.statement import PUT_SHARD, Statement
from nexus.policy.globs import GlobIndex
from nexus.policy.paths import check_path, check_prefix, split_glob
from nexus.vault.fields import check_fields, decode_body, encode_body
from tests.fuzz.budget import budget
from tests.fuzz.mutations import assert_is_short, hostile, hostile_fields, hostile_text, mutated
from tests.kit.chains import make_chain
from tests.kit.marks import MarkMaker

STATEMENT = Statement(
    cluster_id=b"c" * 16,
    issuer="spiffe://example.org/shardhold/keeper/one",
    audience="spiffe://example.org/shardhold/nexus/main",
    purpose=PUT_SHARD,
    nonce=b"n" * 32,
    boot_id=b"b" * 16,
    public_key=b"k" * 32,
    algorithm="ecdsa-p256-sha256",
)
MARKS = MarkMaker()
MARK = MARKS.make()
RECORD = MARKS.record.encode()
CHAINS = make_chain(2)
LINK = parse_fields(parse_fields(CHAINS.records[1])[1])
SEED = b"s" * 32
ESCROW = seal_escrow(b"r" * 32, derive_public_key(SEED), b"info")
BODY = encode_body({"password": b"hunter2", "user": b"app", "empty": b""})
PATHS = hostile_text("team/app/db", "a/../b", "shardhold/x", "/".join("abcdefghijklmnop"), "a" * 128 + "/b")
GLOBS = hostile_text("team/*/db-*", "**", "a/**/b/**/c", "*a*b*c*", "team/**/*", "***")


def sign_link(encoded: bytes) -> bytes:
    """Sign whatever it is as the first generation would."""
    return fields(b"shardhold-link-record-v1", encoded, CHAINS.keys[0].sign(encoded))


@budget(5)
@given(hostile_fields([b"purpose", b"", b"x" * 40, bytes(300)]))
def test_codec(encoded: bytes) -> None:
    """Input that decodes is exactly what its parts encode to, from bytes and from a view."""
    try:
        parts = parse_fields(encoded)
    except CorruptRowError:
        return
    assert fields(*parts) == encoded
    assert parse_fields(memoryview(encoded)) == parts


@budget(5)
@given(hostile_fields(parse_fields(STATEMENT.encode())))
def test_statement(encoded: bytes) -> None:
    """A statement that decodes encodes to the same bytes: it has one form, and so one digest."""
    try:
        statement = Statement.decode(encoded)
    except StatementError:
        return
    assert statement.encode() == encoded


@budget(5)
@given(hostile_fields(parse_fields(RECORD)))
def test_genesis(encoded: bytes) -> None:
    """A record that decodes encodes to the same bytes, so it has one fingerprint."""
    try:
        genesis = decode_genesis(encoded)
    except CorruptRowError:
        return
    assert genesis.encode() == encoded


@budget(4)
@given(hostile_fields(parse_fields(CHAINS.records[1])) | hostile_fields(LINK).map(sign_link))
def test_link(encoded: bytes) -> None:
    """A link that decodes has one form; and only the one that follows from genesis continues the chain."""
    try:
        link, signature = decode_link(encoded)
    except ChainError:
        return
    assert fields(b"shardhold-link-record-v1", link.encode(), signature) == encoded
    assert len(encoded) <= MAX_LINK_SIZE
    try:
        verify_chain([CHAINS.records[0], encoded], CHAINS.genesis.fingerprint)
    except ChainError:
        return
    CHAINS.keys[0].public_key().verify(signature, link.encode())
    assert (link.seq, link.before) == (1, CHAINS.genesis.fingerprint)


@budget(4)
@given(st.lists(hostile(CHAINS.records[0]) | hostile(CHAINS.records[1]) | hostile(CHAINS.records[2]), max_size=4))
def test_chain_of_a_liar(records: list[bytes]) -> None:
    """A chain with anything changed is refused: without the audit keys there are its own beginnings only."""
    for verified in (None, CHAINS.chain):
        try:
            chain = verify_chain(records, CHAINS.genesis.fingerprint, verified=verified)
        except ChainError:
            continue
        assert chain.records == tuple(CHAINS.records[: chain.seq + 1])


@budget(3)
@given(hostile_fields(parse_fields(MARK.mark)))
def test_mark_that_is_signed(encoded: bytes) -> None:
    """The true audit key makes a mark of nothing but a mark."""
    try:
        mark = verify_mark(MARKS.sign(encoded), cluster_id=MARKS.mark.cluster_id, genesis=MARKS.genesis)
    except MarkError:
        return
    assert mark.encode() == encoded


@budget(3)
@given(
    hostile(MARK.mark),
    hostile(MARK.signature),
    st.lists(hostile_fields(parse_fields(RECORD)), max_size=3),
    st.booleans(),
)
def test_mark_of_a_liar(mark: bytes, signature: bytes, chain: list[bytes], keeps_chain: bool) -> None:
    """A mark with anything changed is refused: nobody without the audit key can make one."""
    signed = SignedMark(mark, signature, MARK.chain if keeps_chain else tuple(chain))
    try:
        verify_mark(signed, cluster_id=MARKS.mark.cluster_id, genesis=MARKS.genesis)
    except MarkError:
        return
    assert signed == MARK


@budget(3)
@given(hostile_fields(parse_fields(RECORD)))
def test_mark_of_a_cluster_that_does_not_exist(record: bytes) -> None:
    """A pinned genesis record whose key is no key is a MarkError."""
    try:
        genesis: Genesis | None = decode_genesis(record)
    except CorruptRowError:
        genesis = None
    pin = genesis.fingerprint if genesis else MARKS.genesis
    try:
        mark = verify_mark(MARKS.make(chain=(record,)), cluster_id=MARKS.mark.cluster_id, genesis=pin)
    except MarkError:
        return
    assert mark == MARKS.mark


@budget(3)
@given(st.data())
def test_sealed_message(data: st.DataObject) -> None:
    """A one-shot key opens what was sealed to it, or nothing: then the buffer is all zero."""
    key = OneShotKey()
    sealed = data.draw(hostile(seal(memoryview(b"m" * 33), recipient=key.public_bytes, info=b"info")))
    into = bytearray(b"\xaa" * 33)
    try:
        key.open(sealed, info=b"info", into=memoryview(into))
    except DecryptionError:
        assert into == bytes(33)
        return
    assert into == b"m" * 33


@budget()
@given(hostile(ESCROW), st.sampled_from([SEED, bytes(32)]))
def test_escrow(sealed: bytes, seed: bytes) -> None:
    """An escrow opens as it was sealed, under its own seed, or not at all."""
    try:
        opened = open_sealed(sealed, seed, b"info")
    except DecryptionError:
        return
    assert (opened, sealed, seed) == (b"r" * 32, ESCROW, SEED)


@budget(3)
@given(st.binary(max_size=64).filter(lambda seed: len(seed) != 32))
def test_seed_of_another_size(seed: bytes) -> None:
    """A seed of any size but 32 bytes is an argument error, not a crash."""
    for use in (derive_public_key, lambda wrong: open_sealed(ESCROW, wrong, b"info")):
        try:
            use(seed)
        except InvalidArgumentError:
            continue
        raise AssertionError(f"took a seed of {len(seed)} bytes")


@budget(5)
@given(PATHS)
def test_path(path: str) -> None:
    """A path that passes follows the path rules, which this test states again."""
    try:
        check_path(path)
    except InvalidArgumentError as exc:
        assert_is_short(exc, 300)
        return
    segments = path.split("/")
    assert 1 <= len(segments) <= 16
    assert len(path) <= 512
    assert segments[0] != "shardhold"
    for segment in segments:
        assert 1 <= len(segment) <= 128
        assert segment.isascii()
        assert segment not in (".", "..")
        assert segment.translate({ord(sign): None for sign in "._-"}).isalnum() or not segment.strip("._-")
    check_prefix(path)


@budget(5)
@given(GLOBS, PATHS)
def test_glob(pattern: str, path: str) -> None:
    """A glob is indexed or refused, and gives an answer for any text."""
    index = GlobIndex()
    try:
        index.add(split_glob(pattern), 0)
    except InvalidArgumentError:
        return
    assert index.match(path.split("/")) in (0, 1)
    assert "*" in pattern or index.match(pattern.split("/")) == 1


@budget(5)
@given(hostile_fields(parse_fields(BODY)))
def test_secret_body(body: bytes) -> None:
    """A secret's body that decodes encodes to the same bytes."""
    try:
        decoded = decode_body(body)
    except CorruptRowError:
        return
    assert encode_body(decoded) == body


@budget(3)
@given(st.dictionaries(hostile_text("password", "a" * 64), mutated(b"value"), max_size=70))
def test_fields_of_a_caller(given_fields: dict[str, bytes]) -> None:
    """Fields that pass the check can be stored and come back."""
    try:
        check_fields(given_fields)
    except InvalidArgumentError:
        return
    assert decode_body(encode_body(given_fields)) == given_fields
