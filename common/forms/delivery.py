"""What a sealed shard is bound to on its way between nexus and keeper: the HPKE `info`, built alike on both sides.

A shard that was sealed for one set, point, statement or keeper opens for no other.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from common.forms.codec import fields, u32, u64
from common.forms.epoch import StoreEpoch

PUT_FORMAT = 2  # of PutShard: binds the epoch, and knows keepers that are no member of the current set
UNBOUND_FORMAT = 1  # of the release before; the next one refuses it

_PUTS = {UNBOUND_FORMAT: b"shardhold-put-shard-v1", PUT_FORMAT: b"shardhold-put-shard-v2"}
_SHARE = b"shardhold-submit-share-v1"
_FETCH = b"shardhold-fetch-shard-v1"


@dataclass(frozen=True, slots=True)
class SetLabel:
    """Names one shard set and where it stands; bound into everything that is sealed for it."""

    cluster_id: bytes  # 16 bytes
    genesis: bytes  # 32 bytes, fingerprint of the genesis record
    timeline: int
    generation: int
    set_id: bytes  # 16 bytes
    set_number: int

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: sets in the order of their commits. A restored store may reuse a number, in its next timeline."""
        return self.timeline, self.set_number


class LabelMessage(Protocol):
    """A message with the fields of a label: `SetLabel` of keeper.v1, which common may not import."""

    cluster_id: bytes
    genesis: bytes
    timeline: int
    generation: int
    set_id: bytes
    set_number: int


M = TypeVar("M", bound=LabelMessage)


def read_label(message: LabelMessage) -> SetLabel:
    """Return the label that *message* carries, unchecked."""
    return SetLabel(
        cluster_id=message.cluster_id,
        genesis=message.genesis,
        timeline=message.timeline,
        generation=message.generation,
        set_id=message.set_id,
        set_number=message.set_number,
    )


def write_label(label: SetLabel, message: M) -> M:
    """Write *label* into *message*, and return it."""
    message.cluster_id = label.cluster_id
    message.genesis = label.genesis
    message.timeline = label.timeline
    message.generation = label.generation
    message.set_id = label.set_id
    message.set_number = label.set_number
    return message


def build_put_info(
    label: SetLabel,
    *,
    statement_digest: bytes,
    x: int,
    commitment: bytes,
    current_set_id: bytes,
    epoch: StoreEpoch,
    put_format: int = PUT_FORMAT,
) -> bytes:
    """Bind a shard on its way to a keeper. The statement carries the exact SPIFFE IDs of keeper and nexus.

    An empty *current_set_id* says that the keeper is no member of the current set. *epoch* is bound from `PUT_FORMAT`
    on, and *put_format* by the purpose.
    """
    info = fields(_PUTS[put_format], statement_digest, *_encode(label), u32(x), commitment, current_set_id)
    return info if put_format == UNBOUND_FORMAT else info + fields(u64(epoch.timeline), u64(epoch.epoch))


def build_fetch_info(
    label: SetLabel, *, x: int, boot_id: bytes, keeper_id: str, nexus_id: str, public_key: bytes
) -> bytes:
    """Bind a shard on its way back to the nexus with the SPIFFE ID *nexus_id* and the one-shot *public_key*."""
    return fields(_FETCH, *_encode(label), u32(x), boot_id, keeper_id.encode(), nexus_id.encode(), public_key)


def build_share_info(*, statement_digest: bytes, session_id: bytes, genesis: bytes) -> bytes:
    """Bind a recovery share on its way to the nexus. The statement carries both SPIFFE IDs.

    *genesis* is the fingerprint, 32 bytes, that the custodian compared with the card.
    """
    return fields(_SHARE, statement_digest, session_id, genesis)


def _encode(label: SetLabel) -> tuple[bytes, ...]:
    return (
        label.cluster_id,
        label.genesis,
        u64(label.timeline),
        u64(label.generation),
        label.set_id,
        u64(label.set_number),
    )
