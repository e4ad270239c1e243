"""JSON that was stored and comes back: whatever may be wrong with it is one error of ours.

msgspec raises its own errors for a document of another form, but passes on those of Python for text that is no UTF-8
and for a document that is nested too deep.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from common.errors import CorruptRowError

T = TypeVar("T")


def decode_document(decode: Callable[[bytes], T], encoded: bytes, *, refusal: str) -> T:
    """Decode with *decode*, a decoder of `msgspec.json`.

    Raises:
        CorruptRowError: It is not such a document; the message is *refusal*.
    """
    try:
        return decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptRowError(refusal) from exc
