"""Shamir's scheme: against an independent implementation, over all subsets, and what fewer shards do not reveal."""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyshamir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadShardError, InvalidArgumentError, MixedShardsError, TooFewShardsError
from common.forms.codec import fields
from common.keys.shamir import SHARD_SIZE, combine, commitment, interpolate, split

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "shamir" / "vectors.json").read_text())
CLUSTER, SET = bytes(range(16)), bytes(range(16, 32))
SECRET = bytes(range(100, 132))

Drawing = tuple[bytes, int, list[int], list[bytearray]]  # secret, threshold, xs, shards


def split_bytes(secret: bytes, threshold: int, xs: Sequence[int]) -> list[bytearray]:
    shards = [bytearray(len(secret) + 1) for _ in xs]
    split(memoryview(secret), threshold=threshold, xs=xs, into=[memoryview(shard) for shard in shards])
    return shards


def combine_bytes(shards: Sequence[bytes | bytearray], threshold: int) -> bytes:
    into = bytearray(len(shards[0]) - 1)
    combine([memoryview(shard) for shard in shards], threshold=threshold, into=memoryview(into))
    return bytes(into)


def interpolate_bytes(shards: Sequence[bytes | bytearray], threshold: int, x: int) -> bytes:
    into = bytearray(len(shards[0]))
    interpolate([memoryview(shard) for shard in shards], threshold=threshold, x=x, into=memoryview(into))
    return bytes(into)


@st.composite
def sets(draw: st.DrawFn) -> Drawing:
    secret = draw(st.binary(min_size=1, max_size=32))
    xs = draw(st.lists(st.integers(1, 255), min_size=2, max_size=9, unique=True))
    threshold = draw(st.integers(2, len(xs)))
    return secret, threshold, xs, split_bytes(secret, threshold, xs)


@pytest.mark.parametrize("vector", [pytest.param(v, id=f"{v['threshold']} of {len(v['shards'])}") for v in VECTORS])
def test_shards_of_another_implementation_combine(vector: dict[str, Any]) -> None:
    """Shards made by a port of Vault's code give the secret, from any threshold of them and from all."""
    shards, threshold = [bytes.fromhex(shard) for shard in vector["shards"]], vector["threshold"]
    for some in itertools.chain(itertools.islice(itertools.combinations(shards, threshold), 50), [shards]):
        assert combine_bytes(some, threshold).hex() == vector["secret"]
    for shard in shards[threshold:]:
        assert interpolate_bytes(shards[:threshold], threshold, shard[-1]) == shard


@pytest.mark.parametrize(("threshold", "count"), [(2, 2), (2, 3), (3, 5), (5, 7), (6, 11)])
def test_our_shards_combine_in_another_implementation(threshold: int, count: int) -> None:
    """A port of Vault's code rebuilds the secret from our shards, for xs in order and for others."""
    for xs in (range(1, count + 1), range(255, 255 - count, -1)):
        secret = os.urandom(32)
        shards = split_bytes(secret, threshold, xs)
        assert [len(shard) for shard in shards] == [SHARD_SIZE] * count
        assert [shard[-1] for shard in shards] == list(xs)
        assert pyshamir.combine(shards[-threshold:]) == secret
        assert pyshamir.combine(shards) == secret


@pytest.mark.parametrize("count", [*range(2, 7), pytest.param(7, marks=pytest.mark.slow)])
def test_every_subset_rebuilds(count: int) -> None:
    """For each t of n, all C(n, t) subsets, and larger ones, give the secret and every other shard."""
    for threshold in range(2, count + 1):
        secret = os.urandom(2)
        shards = split_bytes(secret, threshold, range(1, count + 1))
        for size in range(threshold, count + 1):
            for some in itertools.combinations(shards, size):
                assert combine_bytes(some, threshold) == secret
                assert [interpolate_bytes(some, threshold, shard[-1]) for shard in shards] == shards


def test_root_key_size_over_every_subset() -> None:
    """All subsets of 3 of 5 shards rebuild a secret of 32 bytes, and every other shard."""
    shards = split_bytes(SECRET, 3, range(1, 6))
    for some in itertools.permutations(shards, 3):
        assert combine_bytes(some, 3) == SECRET


@pytest.mark.parametrize("threshold", [2, 255])
def test_the_largest_set(threshold: int) -> None:
    """A set of 255 shards, every point of the field but zero, gives the secret back."""
    secret = os.urandom(2)
    shards = split_bytes(secret, threshold, range(1, 256))
    assert combine_bytes(shards[-threshold:], threshold) == secret
    assert combine_bytes(shards, threshold) == secret


def test_one_shard_of_two_says_nothing() -> None:
    """Over all secrets and all coefficients of one byte, each shard is reached exactly once by each secret."""
    seen: dict[int, Counter[tuple[int, int]]] = {1: Counter(), 2: Counter(), 255: Counter()}
    shards = [bytearray(2) for _ in seen]
    views = [memoryview(shard) for shard in shards]
    for secret, coefficient in itertools.product(range(256), range(256)):

        def randomise(view: memoryview, coefficient: int = coefficient) -> None:
            view[0] = coefficient

        split(memoryview(bytes((secret,))), threshold=2, xs=list(seen), into=views, randomise=randomise)
        for shard in shards:
            seen[shard[1]][shard[0], secret] += 1
    for counts in seen.values():
        assert len(counts) == 256 * 256
        assert set(counts.values()) == {1}


@pytest.mark.parametrize("known", [[(1, 0), (2, 0)], [(1, 77), (2, 200)], [(5, 255), (255, 1)]])
def test_two_shards_of_three_say_nothing(known: list[tuple[int, int]]) -> None:
    """With two shards of three fixed, each secret is reached by exactly one value of the third."""
    secrets = {combine_bytes([*(bytes((y, x)) for x, y in known), bytes((y, 3))], 3) for y in range(256)}
    assert len(secrets) == 256


def test_coefficients_are_uniform() -> None:
    """The kernel's bytes are used unchanged: zero is as likely as any other value, even in the highest coefficient."""
    drawn = Counter[int]()
    for _ in range(64):
        [shard] = split_bytes(bytes(256), 2, [1, 2])[:1]
        drawn.update(shard[:-1])  # the secret is zero and x is one: y is the coefficient
    # 16,384 draws over 256 values, 64 expected of each; 8 standard deviations off is not chance.
    assert len(drawn) == 256
    assert min(drawn.values()) > 0
    assert max(drawn.values()) < 64 + 8 * 8


def test_every_split_draws_new_polynomials() -> None:
    """Splitting a secret twice gives no shard in common, and shards of both sets combine to noise."""
    one, other = split_bytes(SECRET, 2, [1, 2]), split_bytes(SECRET, 2, [1, 2])
    assert one[0] != other[0]
    assert combine_bytes([one[0], other[1]], 2) != SECRET


@settings(deadline=None, max_examples=60)
@given(sets(), st.data())
def test_any_threshold_in_any_order(drawing: Drawing, data: st.DataObject) -> None:
    """Any t or more shards, in any order, give the secret and the shard at any x, as good as the others."""
    secret, threshold, _, shards = drawing
    some = data.draw(st.permutations(shards))[: data.draw(st.integers(threshold, len(shards)))]
    assert combine_bytes(some, threshold) == secret
    x = data.draw(st.integers(1, 255))
    new = interpolate_bytes(some, threshold, x)
    assert new[-1] == x
    others = [shard for shard in some if shard[-1] != x][: threshold - 1]
    assert combine_bytes([new, *others], threshold) == secret


@settings(deadline=None, max_examples=60)
@given(sets(), st.data())
def test_a_wrong_further_shard_is_named(drawing: Drawing, data: st.DataObject) -> None:
    """With more than t shards one flipped bit anywhere in a y is found, and nothing is written."""
    _, threshold, xs, shards = drawing
    if len(xs) == threshold:
        return
    wrong = data.draw(st.integers(0, len(shards) - 1))
    shards[wrong][data.draw(st.integers(0, len(shards[wrong]) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    views = [memoryview(shard) for shard in shards]
    size = len(shards[0])
    key, shard = bytearray(b"\xaa" * (size - 1)), bytearray(b"\xaa" * size)
    with pytest.raises(BadShardError, match="is not on the polynomials"):
        combine(views, threshold=threshold, into=memoryview(key))
    with pytest.raises(BadShardError, match="is not on the polynomials"):
        interpolate(views, threshold=threshold, x=1, into=memoryview(shard))
    assert key + shard == b"\xaa" * (2 * size - 1)


GOOD = split_bytes(SECRET, 3, range(1, 6))


@pytest.mark.parametrize(
    ("shards", "threshold", "error"),
    [
        pytest.param(GOOD[:2], 3, TooFewShardsError, id="fewer than the threshold"),
        pytest.param([], 2, TooFewShardsError, id="none"),
        pytest.param([GOOD[0], GOOD[1], GOOD[1]], 3, MixedShardsError, id="the same one twice"),
        pytest.param([*GOOD[:3], bytes(32) + b"\x02"], 3, MixedShardsError, id="a further one for a known x"),
        pytest.param([GOOD[0], GOOD[1], GOOD[2][1:]], 3, BadShardError, id="too short"),
        pytest.param([GOOD[0], GOOD[1], b"\x00" + GOOD[2]], 3, BadShardError, id="too long"),
        pytest.param([GOOD[0], GOOD[1], b""], 3, BadShardError, id="empty"),
        pytest.param([GOOD[0], GOOD[1], bytes(33)], 3, BadShardError, id="x is zero: it would be the secret"),
        pytest.param([*GOOD[:4], bytes(32) + b"\x05"], 3, BadShardError, id="a further one off the polynomials"),
        pytest.param(GOOD, 1, InvalidArgumentError, id="threshold 1"),
        pytest.param(GOOD, 256, InvalidArgumentError, id="threshold 256"),
    ],
)
def test_what_does_not_combine_changes_nothing(
    shards: Sequence[bytes | bytearray], threshold: int, error: type[Exception]
) -> None:
    """Each kind of wrong shards has its own error, and leaves the target unchanged."""
    views = [memoryview(shard) for shard in shards]
    key, shard = bytearray(b"\xaa" * 32), bytearray(b"\xaa" * 33)
    with pytest.raises(error):
        combine(views, threshold=threshold, into=memoryview(key))
    with pytest.raises(error):
        interpolate(views, threshold=threshold, x=9, into=memoryview(shard))
    assert key + shard == b"\xaa" * 65


@pytest.mark.parametrize("x", [0, -1, 256])
def test_there_is_no_shard_at_other_xs(x: int) -> None:
    """Interpolation outside 1 to 255 is refused: at 0 it would give the secret as a shard."""
    into = bytearray(b"\xaa" * 33)
    with pytest.raises(InvalidArgumentError, match="want 1 to 255"):
        interpolate([memoryview(shard) for shard in GOOD], threshold=3, x=x, into=memoryview(into))
    assert into == b"\xaa" * 33


@pytest.mark.parametrize(
    ("threshold", "xs", "sizes"),
    [
        pytest.param(1, [1, 2], [33, 33], id="threshold 1"),
        pytest.param(3, [1, 2], [33, 33], id="threshold above n"),
        pytest.param(2, [1], [33], id="one shard"),
        pytest.param(2, [1, 1], [33, 33], id="an x twice"),
        pytest.param(2, [0, 1], [33, 33], id="x 0"),
        pytest.param(2, [1, 256], [33, 33], id="x 256"),
        pytest.param(2, [1, 2], [33], id="a buffer missing"),
        pytest.param(2, [1, 2], [33, 32], id="a buffer too small"),
        pytest.param(2, [1, 2], [33, 34], id="a buffer too large"),
        pytest.param(2, [*range(1, 256), 1], [33] * 256, id="256 shards"),
    ],
)
def test_what_cannot_be_split_writes_nothing(threshold: int, xs: list[int], sizes: list[int]) -> None:
    """Bad parameters are refused before anything is drawn or written."""
    shards = [bytearray(size) for size in sizes]
    with pytest.raises(InvalidArgumentError):
        split(memoryview(SECRET), threshold=threshold, xs=xs, into=[memoryview(shard) for shard in shards])
    assert not any(any(shard) for shard in shards)


def test_nothing_is_no_secret() -> None:
    """A secret of no bytes is refused."""
    with pytest.raises(InvalidArgumentError, match="0 bytes"):
        split(memoryview(b""), threshold=2, xs=[1, 2], into=[memoryview(bytearray(1))] * 2)


def test_commitment_is_the_digest_of_its_encoding() -> None:
    """The commitment is SHA-256 over the codec's form of label, cluster, set, x and shard."""
    shard = bytes(GOOD[0])
    encoded = fields(b"shardhold-shard-commitment-v1", CLUSTER, SET, b"\x01", shard)
    assert commitment(memoryview(shard), cluster_id=CLUSTER, set_id=SET) == hashlib.sha256(encoded).digest()


def test_one_flipped_bit_changes_the_commitment() -> None:
    """One flipped bit of the shard, its x, the cluster or the set changes the commitment."""
    parts = (bytes(GOOD[0]), CLUSTER, SET)
    seen = set()
    for index, part in enumerate(parts):
        for bit in range(8 * len(part)):
            changed = bytearray(part)
            changed[bit // 8] ^= 1 << bit % 8
            shard, cluster_id, set_id = (bytes(changed) if i == index else p for i, p in enumerate(parts))
            seen.add(commitment(memoryview(shard), cluster_id=cluster_id, set_id=set_id))
    assert len(seen) == 8 * (33 + 16 + 16)
    assert commitment(memoryview(parts[0]), cluster_id=CLUSTER, set_id=SET) not in seen


def test_what_is_no_shard_has_no_commitment() -> None:
    """A commitment needs at least one byte of y and one of x."""
    for size in (0, 1):
        with pytest.raises(BadShardError, match="at least 2"):
            commitment(memoryview(bytes(size)), cluster_id=CLUSTER, set_id=SET)
