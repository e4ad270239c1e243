"""The bodies of control rows, as JSON that an operator can read with `sqlite3`; bytes are base64."""

import enum
import hashlib
import re
import threading
from typing import Annotated, Any, Final, TypeVar

import msgspec

from common.errors import CorruptRowError
from common.forms.codec import fields
from common.forms.delivery import SetLabel
from common.forms.documents import decode_document
from common.forms.genesis import Genesis, decode_genesis
from nexus.store.protocol import Reader

Key = tuple[str, str]  # kind and name of a row
T = TypeVar("T")
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # what every store can count
X = Annotated[int, msgspec.Meta(ge=1, le=255)]  # a point, or how many are needed

# Rows that exist once are named "current"; of the other kinds there are many, each with a number or name of its own.
GENESIS = ("genesis", "current")
RECOVERY_KEY = ("recovery-key", "current")
OPERATION = ("operation", "current")
ENDED = ("operation-ended", "last")
GENERATION = "generation"
KEYRING = "keyring"  # by generation
ESCROW = "escrow"  # by generation
CANARY = "canary"  # by KEK
LINK = "link"  # by its number in the chain, from 1
SHARD_SET = "shard-set"
POLICY = "policy"

RECOVERY_COPY: Final = "recovery-key"  # kind of the copy that custodians open

MAX_KEK_ID: Final = 2**32 - 1  # it is bound in 4 bytes

_DIGEST_SIZE: Final = 32  # bytes of SHA-256
_COPY_KIND: Final = re.compile(r"[a-z][a-z-]{0,31}")
_decoders: dict[type, msgspec.json.Decoder[Any]] = {}  # by kind of row
_making = threading.Lock()
_KEK_NUMBER: Final = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)


class GenesisRecord(msgspec.Struct, frozen=True):
    record: bytes  # as `common.forms.genesis` encodes it


class LinkRecord(msgspec.Struct, frozen=True):
    record: bytes  # as `common.forms.chain` encodes it


class CanaryRecord(msgspec.Struct, frozen=True):
    kek_id: Number
    dek_id: bytes
    wrapped_dek: bytes
    value: bytes


class ShareHashRecord(msgspec.Struct, frozen=True):
    salt: bytes  # 16 bytes
    digest: bytes  # 32 bytes


class RecoveryKeyRecord(msgspec.Struct, frozen=True):
    public_key: bytes  # 1216 bytes
    threshold: X
    shares: tuple[ShareHashRecord, ...]  # in the order of the custodians' numbers


class EscrowCopy(msgspec.Struct, frozen=True):
    """The root key, sealed to one recipient."""

    kind: str  # of the recipient
    recipient: bytes  # SHA-256 of its public key, 32 bytes
    sealed: bytes


class EscrowRecord(msgspec.Struct, frozen=True):
    """The copies of the root key of one generation. No two are for the same recipient."""

    copies: tuple[EscrowCopy, ...]

    def __post_init__(self) -> None:
        recipients = {(copy.kind, copy.recipient) for copy in self.copies}
        if len(recipients) != len(self.copies):
            raise ValueError("two copies for one recipient")
        if not all(_COPY_KIND.fullmatch(kind) and len(recipient) == _DIGEST_SIZE for kind, recipient in recipients):
            raise ValueError("no kind, or no digest of a recipient")

    @property
    def digest(self) -> bytes:
        """Digest of the list, 32 bytes, as the chain names it."""
        parts = (part for copy in self.copies for part in (copy.kind.encode(), copy.recipient, copy.sealed))
        return hashlib.sha256(fields(b"shardhold-escrows-v1", *parts)).digest()


class GenerationState(enum.StrEnum):
    PENDING = "pending"  # staged by an operation before its flip
    ACTIVE = "active"
    DECRYPT_ONLY = "decrypt-only"  # rows under its KEKs may be left
    RETIRED = "retired"  # no row depends on it any more
    COMPROMISED = "compromised"  # somebody else may have it
    DESTROYED = "destroyed"
    ABORTED = "aborted"  # never current


class GenerationRecord(msgspec.Struct, frozen=True):
    """The life of one root key. Times are microseconds since 1970, 0: not yet, or not known."""

    state: GenerationState
    kcv: bytes  # 32 bytes
    created_at: Number = 0
    activated_at: Number = 0
    retired_at: Number = 0
    suspected_at: Number = 0  # since when somebody else may have had it
    found_at: Number = 0  # when that was said
    flip_revision: Number = 0  # of the change that made it current; 0: init
    actor: str = ""
    reason: str = ""
    is_emergency: bool = False
    without_backup: str = ""  # why no backup was waited for; empty: one was
    people_had_it_at: Number = 0  # when custodians brought it back last; 0: never


class KekState(enum.StrEnum):
    CURRENT = "current"
    OLD = "old"  # rows under it are wrapped anew
    TAINTED = "tainted"  # rows under it get new DEKs


class KekRecord(msgspec.Struct, frozen=True):
    wrap: bytes  # 98 bytes
    state: KekState
    generation: Number  # in which it was made
    made_at: Number = 0  # microseconds since 1970, 0: not known
    verified_at: Number = 0  # when no row was found under it, 0: not yet
    abandoned: Number = 0  # rows under it that were given up by name


class KeyringRecord(msgspec.Struct, frozen=True):
    """The KEKs, wrapped under the keyring key of one generation. Exactly one of them is current."""

    keks: dict[str, KekRecord]  # by KEK number, which is 1 to 2**32 - 1, in decimal

    def __post_init__(self) -> None:
        if not all(_KEK_NUMBER.fullmatch(name) and int(name) <= MAX_KEK_ID for name in self.keks):
            raise ValueError("KEK number out of range")
        if sum(kek.state is KekState.CURRENT for kek in self.keks.values()) != 1:
            raise ValueError("want exactly one current KEK")

    @property
    def current_kek_id(self) -> int:
        """The KEK that new DEKs are wrapped under."""
        return next(int(name) for name, kek in self.keks.items() if kek.state is KekState.CURRENT)


class MemberRecord(msgspec.Struct, frozen=True):
    name: str
    spiffe_id: str
    address: str
    x: X
    commitment: bytes  # 32 bytes


class SetState(enum.StrEnum):
    PENDING = "pending"
    CURRENT = "current"
    DEAD = "dead"  # for good


class ShardSetRecord(msgspec.Struct, frozen=True):
    """One shard set: who holds which point of which polynomials."""

    state: SetState
    generation: Number
    set_id: bytes  # 16 bytes
    set_number: Number
    timeline: Number  # in which the set was drawn
    threshold: Annotated[int, msgspec.Meta(ge=2, le=255)]
    members: tuple[MemberRecord, ...]
    drawn_at: Number = 0  # microseconds since 1970, 0: not known
    given_up: tuple[str, ...] = ()  # members of which nobody waits to hear that they dropped it

    def label(self, cluster_id: bytes, genesis: bytes) -> SetLabel:
        """Return the label that goes with each of its shards."""
        return SetLabel(cluster_id, genesis, self.timeline, self.generation, self.set_id, self.set_number)

    @property
    def quorum(self) -> int:
        """Keepers that have to hold their shards before the set may be relied on."""
        return find_quorum(self.threshold, len(self.members))


def find_quorum(threshold: int, members: int) -> int:
    """Return how many of *members* have to hold a set of this threshold before it may be relied on."""
    return min(members, max(threshold + 1, members - 1))


def encode(record: msgspec.Struct) -> bytes:
    """Encode the body of a row."""
    return msgspec.json.encode(record)


def decode(kind: type[T], body: bytes) -> T:
    """Decode the body of a row.

    Raises:
        CorruptRowError: It is not a record of this kind.
    """
    return decode_document(_find_decoder(kind).decode, body, refusal=f"control row is no {kind.__name__}")


def _find_decoder(kind: type[T]) -> msgspec.json.Decoder[T]:
    """Return the decoder of a kind, made once: two threads that make one at once end the process (msgspec 0.22.0)."""
    if (known := _decoders.get(kind)) is not None:
        return known
    with _making:
        return _decoders.setdefault(kind, msgspec.json.Decoder(kind))


def replace_state(record: ShardSetRecord, state: SetState) -> ShardSetRecord:
    """Return *record* in another state."""
    return msgspec.structs.replace(record, state=state)


def load_genesis(reader: Reader) -> Genesis:
    """Load the genesis record, which nothing has verified yet.

    Raises:
        CorruptRowError: It is missing or does not decode.
    """
    return find_genesis(load_body(reader, *GENESIS))


def find_genesis(body: bytes) -> Genesis:
    """Decode the genesis record in the body of its row.

    Raises:
        CorruptRowError: It does not decode.
    """
    return decode_genesis(decode(GenesisRecord, body).record)


def load_body(reader: Reader, kind: str, name: str) -> bytes:
    """Load the body of one row, which nothing has verified yet.

    Raises:
        CorruptRowError: It is missing.
    """
    row = reader.load_control(kind, name)
    if row is None:
        raise CorruptRowError(f"control row {kind}/{name} is missing")
    return row.body
