"""Rollback marks: trusted when they verify from genesis on, refused when anything at all is changed."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MarkError
from common.forms.codec import fields, parse_fields, u64
from common.forms.mark import MAX_SIZE, NO_AUDIT, AuditEnd, Mark, SignedMark, verify_mark
from tests.kit.chains import make_chain
from tests.kit.marks import MarkMaker

OURS = MarkMaker()
FOREIGN = MarkMaker(cluster_id=b"d" * 16, seed=b"b" * 32)
NUMBER = st.integers(0, 2**64 - 1)
ROTATED = [MarkMaker(chains=make_chain(3).cut(seq)) for seq in range(4)]


def verify(signed: SignedMark) -> Mark:
    return verify_mark(signed, cluster_id=OURS.record.cluster_id, genesis=OURS.genesis)


FIRST = {
    "cluster_id": st.just(OURS.record.cluster_id),
    **dict.fromkeys(["timeline", "revision", "control_revision", "set_number", "made_at"], NUMBER),
    "generation": st.just(1),
}
SECOND = FIRST | dict.fromkeys(["epoch", "last_generation", "last_set_number", "last_kek_id"], NUMBER)
AUDIT = st.builds(AuditEnd, st.text("az09._-", max_size=64), NUMBER, NUMBER, st.binary(min_size=32, max_size=32))


@settings(deadline=None, max_examples=50)
@given(st.builds(Mark, **SECOND, audit=AUDIT))
def test_a_mark_comes_back_as_it_was(mark: Mark) -> None:
    """A verified mark says exactly what was signed, whatever its numbers."""
    assert verify(OURS.sign(mark.encode())) == mark


@settings(deadline=None, max_examples=50)
@given(st.builds(Mark, **FIRST, format=st.just(1)))
def test_a_mark_of_the_first_format_comes_back_as_it_was(mark: Mark) -> None:
    """It has no epoch, gives out no numbers, and knows no audit."""
    assert verify(OURS.sign(mark.encode())) == mark
    assert (mark.epoch, mark.last_set_number, mark.audit) == (0, 0, NO_AUDIT)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_one_flipped_bit_is_refused(data: st.DataObject) -> None:
    """A mark is refused when one bit of it, of its signature or of its chain is changed."""
    signed = OURS.make()
    parts = [bytearray(signed.mark), bytearray(signed.signature), bytearray(signed.chain[0])]
    changed = data.draw(st.sampled_from(parts))
    bit = data.draw(st.integers(0, 8 * len(changed) - 1))
    changed[bit // 8] ^= 1 << bit % 8
    mark, signature, genesis = map(bytes, parts)
    with pytest.raises(MarkError):
        verify(SignedMark(mark, signature, (genesis,)))


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200), st.binary(max_size=80), st.lists(st.binary(max_size=200), max_size=3))
def test_noise_is_refused(mark: bytes, signature: bytes, chain: list[bytes]) -> None:
    """Bytes that are not a mark raise MarkError and nothing else."""
    with pytest.raises(MarkError):
        verify(SignedMark(mark, signature, tuple(chain)))


GOOD = OURS.make()
PARTS = parse_fields(GOOD.mark)

REFUSED = [
    pytest.param(FOREIGN.make(), "another cluster", id="a mark of another cluster, right in itself"),
    pytest.param(OURS.make(cluster_id=b"d" * 16), "another cluster", id="our key, another cluster id"),
    pytest.param(
        replace(FOREIGN.make(cluster_id=b"c" * 16), chain=GOOD.chain), "broken signature", id="another cluster's key"
    ),
    pytest.param(
        MarkMaker(seed=b"b" * 32).make(), "another cluster", id="our cluster id, but a chain that starts elsewhere"
    ),
    pytest.param(OURS.make(chain=()), "chain has 0 records", id="no chain"),
    pytest.param(OURS.make(chain=(*GOOD.chain, *GOOD.chain)), "want at most 512", id="genesis twice"),
    pytest.param(
        OURS.make(chain=(*FOREIGN.make().chain, *GOOD.chain)), "another cluster", id="genesis in second place"
    ),
    pytest.param(OURS.make(chain=(bytes(8193),)), "want at most 8192", id="a record that is too long"),
    pytest.param(OURS.make(chain=(b"genesis",)), "no genesis record", id="a record that is none"),
    pytest.param(replace(GOOD, signature=b""), "broken signature", id="no signature"),
    pytest.param(replace(GOOD, signature=bytes(64)), "broken signature", id="a signature of zeros"),
    pytest.param(OURS.make(chain_seq=1), "says generation", id="a chain longer than its own"),
    pytest.param(OURS.make(generation=2), "says generation", id="a generation that its chain does not lead to"),
    pytest.param(ROTATED[3].make(chain_seq=2), "says generation", id="a chain shorter than its own"),
    pytest.param(ROTATED[3].make(generation=3), "says generation", id="the generation before"),
    pytest.param(ROTATED[3].make(format=1), "says generation", id="the first format, which knows one generation"),
    pytest.param(ROTATED[3].make(chain=ROTATED[2].make().chain), "broken signature", id="the chain of before"),
    pytest.param(ROTATED[2].make(chain=ROTATED[3].make().chain), "broken signature", id="the key of before"),
    pytest.param(ROTATED[3].make(revision=299), "earlier store", id="a revision before its generation began"),
    pytest.param(ROTATED[3].make(timeline=0), "earlier store", id="a timeline before its generation began"),
    pytest.param(ROTATED[3].make(control_revision=29), "earlier store", id="control rows of before its generation"),
    pytest.param(OURS.sign(b""), "does not decode", id="signed, but empty"),
    pytest.param(OURS.sign(GOOD.mark + fields(b"more")), "does not decode", id="signed, with a part more"),
    pytest.param(OURS.sign(fields(b"shardhold-mark-v1", *PARTS[1:])), "does not decode", id="the other format's name"),
    pytest.param(OURS.sign(fields(*PARTS[:-1], bytes(31))), "does not decode", id="signed, a hash of 31 bytes"),
    pytest.param(OURS.sign(fields(*PARTS[:-2], b"x" * 65, PARTS[-1])), "does not decode", id="signed, a long name"),
    pytest.param(OURS.sign(fields(*PARTS[:-2], b"\xff", PARTS[-1])), "does not decode", id="signed, a name of noise"),
    pytest.param(OURS.sign(fields(b"shardhold-checkpoint-v1", *PARTS[1:])), "does not decode", id="another purpose"),
    pytest.param(
        OURS.sign(fields(*PARTS[:-3], b"soon", *PARTS[-2:])), "does not decode", id="signed, a number of four bytes"
    ),
    pytest.param(OURS.sign(fields(*PARTS, *[u64(0)] * MAX_SIZE)), "at most 1024", id="signed, but far too long"),
]


@pytest.mark.parametrize(("signed", "words"), REFUSED)
def test_what_is_no_mark_of_ours_is_refused(signed: SignedMark, words: str) -> None:
    """A mark that does not lead from this cluster's genesis to a well-formed mark is refused with its cause."""
    with pytest.raises(MarkError, match=words):
        verify(signed)


@pytest.mark.parametrize("seq", range(4))
def test_a_mark_of_each_generation_verifies(seq: int) -> None:
    """From the same genesis on; also at the very revision of the change that began its generation."""
    maker = ROTATED[seq]
    at_once = maker.make(revision=100 * seq, control_revision=10 * seq)
    for signed in (maker.make(), at_once):
        assert verify(signed).generation == 1 + seq


def test_what_somebody_knows_of_the_chain_is_not_sent_again() -> None:
    """The rest follows the record that is named; who knows another chain, or none, gets all of it."""
    signed = ROTATED[3].make()
    digests = [hashlib.sha256(record).digest() for record in signed.chain]
    for at, digest in enumerate(digests):
        assert signed.find_rest(digest) == (digest, signed.chain[at + 1 :])
    for unknown in (b"", bytes(32), hashlib.sha256(ROTATED[3].mark.encode()).digest()):
        assert signed.find_rest(unknown) == (b"", signed.chain)


def test_order_is_timeline_revision_audit() -> None:
    """A mark of a later timeline is newer, however small its revision; the audit decides at the same position."""
    parts = [(2, 1, 1, 1), (1, 9, 2, 1), (1, 9, 1, 8), (1, 9, 1, 7), (1, 2, 3, 9)]
    marks = [
        replace(OURS.mark, timeline=timeline, revision=revision, audit=AuditEnd("n1", chain, seq))
        for timeline, revision, chain, seq in parts
    ]
    assert sorted(marks, key=lambda mark: mark.order) == marks[::-1]
