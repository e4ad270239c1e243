"""Requests that are sent again: found by caller and id, and held against what the first one asked for.

1. A request that made its change once makes nothing more: whoever repeats it gets what the first one made.
2. Another request under a used id is refused. What was asked for is compared by an HMAC under the request key.
3. Where that key is of another generation, or the row comes from a store that knew no HMAC, only caller, rpc and path
   are compared.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import InvalidArgumentError
from common.forms.codec import fields, u64
from nexus.keys.root_key import RootKey
from nexus.store.protocol import MadeByRequest, RequestRow, Writer

_PURPOSE = b"shardhold-request-v1"


@dataclass(frozen=True, slots=True)
class Request:
    """One that is to change something."""

    request_id: bytes  # 16 bytes
    caller: str
    rpc: str
    path: str
    message: bytes  # what the HMAC is of

    def find_made(self, writer: Writer, root_key: RootKey) -> MadeByRequest | None:
        """Find what this request made when it was sent before.

        Raises:
            InvalidArgumentError: The caller has made something else with the id.
        """
        row = writer.find_request(self.caller, self.request_id)
        if row is None:
            return None
        if not self._is(row, root_key):
            raise InvalidArgumentError("request_id: was used for another request, want a new one")
        return row.made

    def save(self, writer: Writer, root_key: RootKey, made: MadeByRequest, *, made_at: int) -> None:
        """Keep what this request made, in the same change; *made_at* in microseconds since 1970."""
        mac = root_key.authenticate_request(self.message)
        asked = (self.request_id, self.caller, self.rpc, self.path, root_key.generation, mac)
        writer.save_request(RequestRow(*asked, made, made_at))

    def _is(self, row: RequestRow, root_key: RootKey) -> bool:
        if (row.rpc, row.path) != (self.rpc, self.path):
            return False
        if not row.mac or row.generation != root_key.generation:  # rule 3
            return True
        return hmac.compare_digest(row.mac, root_key.authenticate_request(self.message))


def describe_request(
    request_id: bytes,
    caller: str,
    rpc: str,
    path: str,
    *,
    expected_version: int | None,
    expected_incarnation: bytes,
    content: bytes,
) -> Request:
    """Make the request that asks for this; *content* is the one encoding of what is written or deleted."""
    # Only the HMAC is stored. A plain digest, or one under a key that others have, would let whoever reads the store
    # find a value by guessing. Caller and id are part of it for the same reason: nobody who may call, but not read, can
    # have the nexus make the HMAC of a guess to compare with, and two requests for one value have nothing in common.
    # The content goes in by its digest, so that the work inside a change is the same for every size; it is never kept.
    message = fields(
        _PURPOSE,
        request_id,
        caller.encode(),
        rpc.encode(),
        path.encode(),
        b"" if expected_version is None else u64(expected_version),
        expected_incarnation,
        hashlib.sha256(content).digest(),
    )
    return Request(request_id, caller, rpc, path, message)


def encode_versions(versions: Sequence[int]) -> bytes:
    """Encode which versions a delete names, in any order and any number of times; none stands for all."""
    return b"".join(map(u64, sorted(set(versions))))
