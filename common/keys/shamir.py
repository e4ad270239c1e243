"""Shamir's scheme over GF(2^8), polynomial 0x11b: one polynomial for each byte of the secret.

The wire form of a shard is y ‖ x, as in HashiCorp Vault: as many bytes as the secret has, then the point's x, 1 to 255.

The xs are public, so loops and branches may depend on them. The ys, the secret and the coefficients are secret: every
product has one public factor, and the secret one goes only through shifts, masks and xor; it indexes no table and
decides no branch. CPython itself does not promise constant time; these are single bytes, not a key in one int.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence

from common.errors import BadShardError, InvalidArgumentError, MixedShardsError, TooFewShardsError
from common.forms.codec import fields, u32
from common.keys.protected import random_into, wipe_bytes

SHARD_SIZE = 33  # bytes of a shard of a root key: 32 of y, one of x
MAX_SHARDS = 255  # the points other than 0 of the field

_COMMITMENT = b"shardhold-shard-commitment-v1"


def split(
    secret: memoryview,
    *,
    threshold: int,
    xs: Sequence[int],
    into: Sequence[memoryview],
    randomise: Callable[[memoryview], None] = random_into,
) -> None:
    """Draw new polynomials through *secret* and put their point at xs[i] into into[i], len(secret) + 1 bytes.

    Any *threshold* of the shards give the secret; fewer say nothing about it. *randomise* fills a buffer with uniform
    bytes; only tests pass their own. Nothing is written on failure.

    Raises:
        InvalidArgumentError: Not 2 ≤ threshold ≤ n ≤ 255, xs not distinct in 1 to 255, or a buffer of the wrong size.
    """
    if not secret:
        raise InvalidArgumentError("secret is 0 bytes, want at least 1")
    if not 2 <= threshold <= len(xs) <= MAX_SHARDS:
        raise InvalidArgumentError(f"threshold {threshold} of {len(xs)} shards, want 2 ≤ threshold ≤ n ≤ {MAX_SHARDS}")
    if len(set(xs)) != len(xs) or not all(1 <= x <= MAX_SHARDS for x in xs):
        raise InvalidArgumentError(f"xs are {list(xs)}, want distinct numbers from 1 to {MAX_SHARDS}")
    if len(into) != len(xs) or any(len(shard) != len(secret) + 1 for shard in into):
        raise InvalidArgumentError(f"shards are {[len(s) for s in into]} bytes, want {len(xs)} of {len(secret) + 1}")
    # All coefficients are uniform, the highest too: if that one were never zero, t - 1 shards would rule out one of the
    # 256 values of each secret byte.
    coefficients = bytearray((threshold - 1) * len(secret))
    try:
        with memoryview(coefficients) as view:
            randomise(view)
        for x, shard in zip(xs, into, strict=True):
            for place in range(len(secret)):
                value = 0
                for term in range(place, len(coefficients), len(secret)):
                    value = _times(x, value ^ coefficients[term])
                shard[place] = value ^ secret[place]
            shard[-1] = x
    finally:
        wipe_bytes(coefficients)


def combine(shards: Sequence[memoryview], *, threshold: int, into: memoryview) -> None:
    """Rebuild the secret that *shards* were split from.

    The first *threshold* shards give it; further ones are checked against them. Check every shard against its
    commitment first: with exactly *threshold* shards, a wrong one cannot be detected here. *into* is unchanged on
    failure.

    Raises:
        TooFewShardsError: Fewer than *threshold* shards.
        MixedShardsError: Two shards for the same x.
        BadShardError: A shard of the wrong size or with x = 0, or a further shard that is not on the polynomials.
    """
    _check(shards, threshold, len(into) + 1)
    _point(shards[:threshold], 0, into)


def interpolate(shards: Sequence[memoryview], *, threshold: int, x: int, into: memoryview) -> None:
    """Compute the shard at *x* of the polynomials that *shards* lie on, without rebuilding the secret.

    Checks as `combine` does; *into*, as long as a shard, is unchanged on failure.

    Raises:
        InvalidArgumentError: *x* is not 1 to 255.
        TooFewShardsError, MixedShardsError, BadShardError: As `combine`.
    """
    if not 1 <= x <= MAX_SHARDS:
        raise InvalidArgumentError(f"x is {x}, want 1 to {MAX_SHARDS}")
    _check(shards, threshold, len(into))
    _point(shards[:threshold], x, into[:-1])
    into[-1] = x


def commitment(shard: memoryview, *, cluster_id: bytes, set_id: bytes) -> bytes:
    """Return the SHA-256 commitment of *shard*, 32 bytes.

    It is the hash of `fields("shardhold-shard-commitment-v1", cluster_id, set_id, x, shard)`, with x as one byte. The
    32 uniform bytes in it make guessing hopeless, so the hash hides the shard without a salt.

    Raises:
        BadShardError: The shard is shorter than one y and an x.
    """
    if len(shard) < 2:
        raise BadShardError(f"shard is {len(shard)} bytes, want at least 2")
    digest = hashlib.sha256(fields(_COMMITMENT, cluster_id, set_id, bytes((shard[-1],))))
    # The rest of the encoding, piece by piece: `fields` would copy the shard into bytes that cannot be wiped.
    digest.update(u32(len(shard)))
    digest.update(shard)
    return digest.digest()


def _check(shards: Sequence[memoryview], threshold: int, size: int) -> None:
    if not 2 <= threshold <= MAX_SHARDS:
        raise InvalidArgumentError(f"threshold is {threshold}, want 2 to {MAX_SHARDS}")
    if len(shards) < threshold:
        raise TooFewShardsError(f"{len(shards)} shards, want {threshold}")
    for shard in shards:
        if len(shard) != size or size < 2:
            raise BadShardError(f"shard is {len(shard)} bytes, want {max(size, 2)}")
        if shard[-1] == 0:
            raise BadShardError("shard has x = 0, want 1 to 255")
    xs = [shard[-1] for shard in shards]
    if len(set(xs)) != len(xs):
        raise MixedShardsError(f"two shards for one x among {sorted(xs)}")
    expected = bytearray(size - 1)
    try:
        for shard in shards[threshold:]:
            with memoryview(expected) as view:
                _point(shards[:threshold], shard[-1], view)
            if not hmac.compare_digest(expected, shard[:-1]):
                raise BadShardError(f"shard at x = {shard[-1]} is not on the polynomials of the other {threshold}")
    finally:
        wipe_bytes(expected)


def _point(shards: Sequence[memoryview], x: int, into: memoryview) -> None:
    """Evaluate at *x* the polynomials through *shards*: the sum over i of y_i · L_i(x), L_i public (Lagrange)."""
    xs = [shard[-1] for shard in shards]
    weights = [_weight(xs, i, x) for i in range(len(xs))]
    for place in range(len(into)):
        value = 0
        for shard, weight in zip(shards, weights, strict=True):
            value ^= _times(weight, shard[place])
        into[place] = value


def _weight(xs: list[int], i: int, x: int) -> int:
    above, below = 1, 1
    for j, other in enumerate(xs):
        if j != i:
            above = _times(above, x ^ other)
            below = _times(below, xs[i] ^ other)
    return _times(above, _inverse(below))


def _inverse(public: int) -> int:
    result = 1
    for _ in range(254):  # a^254 = a^-1, since a^255 = 1
        result = _times(public, result)
    return result


def _times(public: int, value: int) -> int:
    """Multiply in GF(2^8). Time depends on *public* alone."""
    product = 0
    while public:
        product ^= value & -(public & 1)
        value = (value << 1) ^ (0x11B & -(value >> 7))
        public >>= 1
    return product
