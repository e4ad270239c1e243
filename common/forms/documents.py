"""Stored JSON that is read back: whatever is wrong with it becomes one error of ours.

msgspec raises its own errors for a document of another form, but lets Python's through for text that is not UTF-8 and
for a document that is nested too deeply.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from common.errors import CorruptRowError

T = TypeVar("T")


def decode_document(decode: Callable[[bytes], T], encoded: bytes, *, refusal: str) -> T:
    """Decode with *decode*, a decoder of `msgspec.json`.

    Raises:
        CorruptRowError: *encoded* is not such a document; the message is *refusal*.
    """
    try:
        return decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise CorruptRowError(refusal) from exc
