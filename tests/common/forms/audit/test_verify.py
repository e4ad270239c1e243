"""What `verify` finds in audit files that someone has tampered with."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.forms.audit.entry import Entry
from common.forms.audit.line import NO_HASH, Line, SegmentLine, encode_line
from common.forms.audit.verify import KnownLine, verify, verify_lines
from common.forms.genesis import Genesis
from nexus.access.audit.log import AuditLog
from tests.kit.chains import ChainMaker, make_chain, public_bytes
from tests.nexus.access.audit.keyed import make_entry

FIRST, SECOND = "nexus-1.000001.000001.jsonl", "nexus-1.000001.000002.jsonl"
HEADER, A, B, C, D, CHECKPOINT = range(6)  # the lines of the first segment

Lines = list[bytes]


class Key:
    """A signer of checkpoints."""

    def __init__(self, seed: int) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Sign with Ed25519."""
        return self._key.sign(message)


KEY = Key(1)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return two segments: entries a, b, c, d and a signed checkpoint; e and a signed checkpoint."""
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.set_signer(KEY, [b"link 1"])
        for path in "abcd":
            log.append(make_entry(path))
    with (tmp_path / FIRST).open("ab") as file:
        file.write(b"torn")
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.set_signer(KEY)
        log.append(make_entry("e"))
    return tmp_path


def edit(file: Path, change: Callable[[Lines], object]) -> None:
    """Change the lines of a file in place."""
    lines = file.read_bytes().splitlines(keepends=True)
    change(lines)
    file.write_bytes(b"".join(lines))


def forge(lines: Lines, number: int, old: bytes, new: bytes) -> None:
    """Replace text in one line, and make all later hashes fit again."""
    lines[number] = lines[number].replace(old, new)
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    previous = NO_HASH
    for index, line in enumerate(lines[: CHECKPOINT + 1]):
        lines[index], previous = encode_line(decoder.decode(line), previous)


def test_an_untouched_audit_verifies(directory: Path) -> None:
    """The report of an untouched audit has one chain, its last line, the valid checkpoints and the named torn tail."""
    report = verify(directory, public_keys=[KEY.public_key])
    assert report.faults == []
    (chain,) = report.chains
    assert (chain.segments, chain.seq, chain.signed, chain.signed_seq) == (2, 10, 2, 10)
    assert [tail.is_named for tail in report.torn_tails] == [True]


@pytest.mark.parametrize(
    ("change", "line", "why"),
    [
        pytest.param(lambda lines: lines.__setitem__(B, lines[B].replace(b'"b"', b'"x"')), 3, "hash", id="edited"),
        pytest.param(lambda lines: lines.pop(B), 3, "hash", id="removed"),
        pytest.param(lambda lines: lines.insert(B, lines[B]), 4, "hash", id="repeated"),
        pytest.param(lambda lines: lines.insert(C, lines.pop(B)), 3, "hash", id="reordered"),
        pytest.param(lambda lines: lines.pop(CHECKPOINT), 6, "not whole", id="the last one removed"),
        pytest.param(lambda lines: lines.pop(HEADER), 1, "does not say", id="the header removed"),
        pytest.param(
            lambda lines: lines.__setitem__(D, lines[D].replace(b'"hash"', b'"hush"')), 5, "not whole", id="no hash"
        ),
        pytest.param(
            lambda lines: lines.__setitem__(HEADER, lines[HEADER].replace(b"nexus-1", b"nexus-2")),
            1,
            "hash",
            id="the header edited",
        ),
        pytest.param(lambda lines: forge(lines, B, b'"b"', b'"x"'), 6, "signature", id="all hashes made anew"),
        pytest.param(lambda lines: lines.clear(), 1, "segment 1 is missing", id="emptied"),
        pytest.param(
            lambda lines: lines.__setitem__(-1, lines[-1] + b"and more"), 7, "not whole", id="torn tail edited"
        ),
    ],
)
def test_the_first_bad_line_is_named(directory: Path, change: Callable[[Lines], object], line: int, why: str) -> None:
    """Any kind of edit is a fault at the first line that shows it."""
    edit(directory / FIRST, change)
    (fault,) = verify(directory, public_keys=[KEY.public_key]).faults
    assert (fault.line, why in fault.why) == (line, True), fault


def test_each_flipped_bit_is_found(directory: Path) -> None:
    """No bit of a whole line can be flipped without being found."""
    whole = (directory / FIRST).read_bytes()
    for offset in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << (offset % 8)
        (directory / FIRST).write_bytes(flipped)
        (fault,) = verify(directory).faults
        assert (fault.file, fault.line) == (FIRST, whole[:offset].count(b"\n") + 1)


def test_a_flip_in_the_newest_lines_is_no_torn_tail(tmp_path: Path) -> None:
    """Whole lines that do not follow are a fault, even at the end, where a crash could have left part of a line."""
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.append(make_entry("a"))
    edit(tmp_path / FIRST, lambda lines: lines.__setitem__(A, lines[A].replace(b'"a"', b'"x"')))
    (fault,) = verify(tmp_path).faults
    assert (fault.file, fault.line) == (FIRST, 2)


def test_a_part_of_a_line_at_the_end_is_a_torn_tail(tmp_path: Path) -> None:
    """What a crash leaves is reported as a torn tail, not as a fault, even before the nexus is restarted."""
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.append(make_entry("a"))
    with (tmp_path / FIRST).open("ab") as file:
        file.write(b'{"kind":"ent')
    report = verify(tmp_path)
    assert report.faults == []
    assert [(tail.size, tail.is_named) for tail in report.torn_tails] == [(12, False)]


def test_a_missing_segment_is_named(directory: Path) -> None:
    """A chain must be complete from its first segment on."""
    (directory / FIRST).unlink()
    (fault,) = verify(directory).faults
    assert (fault.file, fault.line, fault.why) == (SECOND, 1, "segment 1 is missing before it")


def test_a_segment_under_another_name_is_named(directory: Path) -> None:
    """A segment whose header does not match its file name is a fault."""
    (directory / FIRST).rename(directory / "nexus-2.000001.000001.jsonl")
    faults = verify(directory, nexus="nexus-2").faults
    assert [fault.why for fault in faults] == [f"segment says that it is {FIRST} in format 1"]


def test_a_foreign_key_is_named(directory: Path) -> None:
    """When public keys are given, a checkpoint by any other key is a fault."""
    (fault,) = verify(directory, public_keys=[Key(2).public_key]).faults
    assert (fault.line, fault.why) == (CHECKPOINT + 1, "checkpoint is signed by another key")


def test_a_checkpoint_carries_the_links_to_its_key(directory: Path) -> None:
    """A checkpoint contains the links to its key, and its signature covers them."""
    decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)
    line = decoder.decode((directory / FIRST).read_bytes().splitlines()[CHECKPOINT])
    assert not isinstance(line, SegmentLine)
    assert getattr(line, "chain", None) == [b"link 1"]
    edit(directory / FIRST, lambda lines: forge(lines, CHECKPOINT, b'"bGluayAx"', b'"bGluayAy"'))
    (fault,) = verify(directory).faults
    assert (fault.line, fault.why) == (CHECKPOINT + 1, "signature of the checkpoint does not verify")


def test_two_nexuses_are_checked_apart(tmp_path: Path) -> None:
    """A fault in one nexus's chains does not hide the report on another's."""
    for nexus in ("nexus-1", "nexus-2"):
        with closing(AuditLog.open(tmp_path, nexus=nexus, timeline=1)) as log:
            log.append(make_entry("a"))
    edit(tmp_path / FIRST, lambda lines: lines.pop(A))
    report = verify(tmp_path)
    assert [fault.file for fault in report.faults] == [FIRST]
    assert [(chain.nexus, chain.seq) for chain in report.chains] == [("nexus-1", 1), ("nexus-2", 3)]


# What a nexus hands out


def load_lines(directory: Path) -> Lines:
    """Load the whole lines of both segments."""
    lines = [line for name in (FIRST, SECOND) for line in (directory / name).read_bytes().splitlines(keepends=True)]
    return [line for line in lines if line.endswith(b"\n")]


def test_lines_that_a_nexus_hands_out(directory: Path) -> None:
    """They are checked like files, but for what a crash left, of which only the size is told."""
    lines = load_lines(directory)
    report, files = verify_lines("nexus-1", {1: lines}, lines[:1], genesis=b"", known=None), verify(directory)
    assert report == files
    edited = [line.replace(b'"path":"b"', b'"path":"x"') for line in lines]
    (fault,) = verify_lines("nexus-1", {1: edited}, lines[:1], genesis=b"", known=None).faults
    assert (fault.file, fault.line, fault.why) == (FIRST, 3, "hash does not match this line and the one before")
    (fault,) = verify_lines("nexus-1", {1: lines[:2] + lines[3:]}, lines[:1], genesis=b"", known=None).faults
    assert (fault.file, fault.line) == (FIRST, 3)


def test_a_known_line_has_to_be_there(directory: Path) -> None:
    """It tells a whole chain from one whose end was cut off, or written anew."""
    chain = verify(directory).chains[-1]
    known = KnownLine(1, chain.seq, chain.digest)
    assert verify(directory, known=known).faults == []
    for other in (KnownLine(1, chain.seq + 1, chain.digest), KnownLine(1, chain.seq, bytes(32))):
        (fault,) = verify(directory, known=other).faults
        assert fault.why == f"line {other.seq} of timeline 1, hash {other.digest.hex()}, is missing"
    lines = load_lines(directory)
    assert verify_lines("nexus-1", {1: lines[:-1]}, lines[:1], genesis=b"", known=known).faults


def test_a_checkpoint_has_to_lead_to_the_genesis(tmp_path: Path) -> None:
    """The chain of a checkpoint begins with the genesis record of that fingerprint, which names its key."""
    genesis = Genesis(bytes(16), 1, bytes(32), KEY.public_key, bytes(1216), bytes(32))
    other = Genesis(bytes(16), 2, bytes(32), KEY.public_key, bytes(1216), bytes(32))
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.set_signer(KEY, [genesis.encode()])
        log.append(make_entry("a"))
    assert verify(tmp_path, genesis=genesis.fingerprint).faults == []
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.set_signer(Key(2), [genesis.encode()])
        log.append(make_entry("b"))
    (fault,) = verify(tmp_path, genesis=genesis.fingerprint).faults
    assert fault.line == 5, "of the second checkpoint, by another key"
    (fault,) = verify(tmp_path, genesis=other.fingerprint).faults
    assert (fault.line, fault.why) == (3, "checkpoint is signed by a key that this genesis does not lead to")


def test_an_accepted_new_chain_is_told(tmp_path: Path) -> None:
    """Who reads the report sees where somebody accepted that lines are missing."""
    entry = Entry(at=1, actor="olga", action="audit.new-chain", detail="the disk died")
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        log.begin_anew(entry)
    report = verify(tmp_path)
    assert (report.faults, [line.entry for line in report.accepted]) == ([], [entry])


class ChainKey:
    """The signer of one generation of a chain."""

    def __init__(self, chains: ChainMaker) -> None:
        self.public_key = public_bytes(chains.key)
        self.sign = chains.key.sign
        self.links = chains.records


ONE, TWO, THREE = (ChainKey(make_chain(2).cut(seq)) for seq in range(3))
FORK = ChainKey(make_chain(1).cut(1).add(branch="fork"))
STRANGER = ChainKey(ChainMaker(seed=b"s" * 32))


@pytest.mark.parametrize(
    ("signers", "why"),
    [
        pytest.param([(1, ONE), (1, TWO), (1, TWO), (1, THREE)], "", id="one generation after another"),
        pytest.param([(1, ONE), (1, THREE)], "", id="two links at once"),
        pytest.param([(1, THREE), (2, ONE), (2, TWO)], "", id="an older store was accepted"),
        pytest.param([(1, THREE), (2, FORK)], "", id="an older store was accepted, and got another root key"),
        pytest.param([(1, TWO), (1, ONE)], "by generation 1, after one by generation 2", id="an earlier generation"),
        pytest.param([(2, TWO), (2, ONE)], "by generation 1, after one by", id="an earlier one in a later timeline"),
        pytest.param([(1, THREE), (1, FORK)], "by generation 3, after one by generation 3", id="a fork"),
        pytest.param([(1, ONE), (1, STRANGER)], "genesis does not lead to", id="another cluster"),
    ],
)
def test_the_signer_changes_along_the_chain(tmp_path: Path, signers: list[tuple[int, ChainKey]], why: str) -> None:
    """From a generation to a later one; back only where a new timeline begins."""
    for timeline, signer in signers:
        with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=timeline)) as log:
            log.set_signer(signer, signer.links)
            log.append(make_entry("a"))
    faults = verify(tmp_path, genesis=make_chain(2).genesis.fingerprint).faults
    assert len(faults) == bool(why)
    assert not why or why in faults[0].why


@pytest.mark.parametrize(
    "forge_links",
    [
        pytest.param(lambda links: [links[0], links[2]], id="one left out"),
        pytest.param(lambda links: links[:2], id="the last one left out"),
        pytest.param(lambda links: [links[0], links[2], links[1]], id="in another order"),
        pytest.param(lambda links: [*links, make_chain(3).records[3]], id="one too many"),
        pytest.param(lambda links: [*links[:2], FORK.links[2]], id="one of a fork"),
        pytest.param(lambda links: [*links[:2], STRANGER.links[0]], id="one that is no link"),
        pytest.param(
            lambda links: [*links[:2], links[2][:-1] + bytes([links[2][-1] ^ 1])], id="one that is not signed"
        ),
        pytest.param(lambda links: links[1:], id="the genesis record left out"),
        pytest.param(lambda links: [], id="all of them"),
    ],
)
def test_a_link_that_is_none_of_the_chain(tmp_path: Path, forge_links: Callable[[Lines], Lines]) -> None:
    """The true key signs with links that do not lead to it: what comes before it in the files is whole."""
    with closing(AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)) as log:
        for signer, links in ((ONE, ONE.links), (TWO, TWO.links), (THREE, forge_links(THREE.links))):
            log.set_signer(signer, links)
            log.append(make_entry("a"))
            log.end_stretch()
    report = verify(tmp_path, genesis=make_chain(2).genesis.fingerprint)
    (fault,) = report.faults
    assert fault.why == "checkpoint is signed by a key that this genesis does not lead to"
    assert (report.chains[0].signed, report.chains[0].signed_seq) == (2, 5)
