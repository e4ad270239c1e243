"""What one call leaves in the audit: who did what to which path, whether it was allowed, how it ended. No values."""

import msgspec

from common.errors import CorruptRowError
from common.forms.documents import decode_document


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One call, or something that the audit says of itself (`audit.…`)."""

    at: int  # microseconds since 1970
    actor: str  # SPIFFE ID; empty: the nexus itself
    action: str  # secret.get, policy.apply, keeper.refill, …
    address: str = ""  # of the peer
    path: str = ""
    version: int = 0  # 0: none
    decision: str = "allow"  # or deny
    policy: str = ""  # name of the policy that allowed it
    outcome: str = "ok"  # or the reason of the error
    request_id: str = ""  # hex
    detail: str = ""

    def encode(self) -> bytes:
        """Encode as JSON on one line."""
        return _ENCODER.encode(self)


def decode_entry(encoded: bytes) -> Entry:
    """Decode what `Entry.encode` encoded. It must be a single line, since it becomes part of one.

    Raises:
        CorruptRowError: *encoded* is not an entry.
    """
    if b"\n" in encoded or b"\r" in encoded:
        raise CorruptRowError("audit entry is not on one line")
    return decode_document(_DECODER.decode, encoded, refusal="audit entry does not decode")


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Entry)
