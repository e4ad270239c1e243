"""HMAC and HKDF-Expand with SHA-256 on keys in protected memory, leaving no copy of key or result elsewhere.

Measured by scanning /proc/PID/mem, main and worker threads: OpenSSL's one-shot HMAC cleanses what it allocates, but
leaves its last result on the C stack. So each call with a secret result moves it, wipes the `bytes` it came in, and
makes one more call of the same shape over zeros, which overwrites that place.
"""

import hmac

from common.errors import InvalidArgumentError
from common.keys.protected import wipe_bytes

DIGEST_SIZE = 32  # bytes of a SHA-256 digest


def expand(key: memoryview, info: bytes, into: memoryview) -> None:
    """Derive up to 32 bytes of *key* and *info* into *into*: HKDF-Expand-SHA256 (RFC 5869 §2.3), its first block.

    *key* must be uniform (a root key, a KEK, an HKDF-Extract output), since there is no Extract here. The length of
    *into* is not bound: use only one length with each *info*.

    Raises:
        InvalidArgumentError: *into* is empty or longer than 32 bytes.
    """
    hmac_into(key, info + b"\x01", into)


def hmac_into(key: memoryview, message: bytes | bytearray | memoryview, into: memoryview) -> None:
    """Put the first len(into) bytes of HMAC-SHA256 into *into*; *message* may be secret too.

    Raises:
        InvalidArgumentError: *into* is empty or longer than 32 bytes.
    """
    if not 1 <= len(into) <= DIGEST_SIZE:
        raise InvalidArgumentError(f"derived key of {len(into)} bytes, want 1 to {DIGEST_SIZE}")
    tag = hmac.digest(key, message, "sha256")
    with memoryview(tag) as result:
        into[:] = result[: len(into)]
    wipe_bytes(tag)
    hmac.digest(bytes(len(key)), bytes(len(message)), "sha256")


def hmac_sha256(key: memoryview, message: bytes) -> bytes:
    """Return the 32-byte HMAC-SHA256 tag of *message*. Only for public tags, never to derive a key.

    The tag may stay on the C stack: it is public.
    """
    return hmac.digest(key, message, "sha256")
