"""Check the audit: every line, every segment, every checkpoint; as files, or as a nexus hands out its lines.

It cannot tell by itself whether the newest lines were cut off: give it a line that must be there, from an earlier check
or from the store of the nexus.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from common.errors import ChainError, CorruptRowError
from common.forms.audit.line import (
    FORMAT,
    NO_HASH,
    CheckpointLine,
    EntryLine,
    Line,
    SegmentLine,
    TornTailLine,
    checkpoint_message,
    decode_first_line,
    decode_line,
)
from common.forms.audit.segment import Segment, hash_rest, list_segments
from common.forms.chain import Chain, verify_chain


@dataclass(frozen=True, slots=True)
class Fault:
    """The first line that is not what was written."""

    file: str
    line: int  # from 1
    offset: int  # bytes
    why: str


@dataclass(frozen=True, slots=True)
class TornTail:
    """Bytes that a crash left after the last whole line of a segment."""

    file: str
    offset: int
    size: int
    is_named: bool  # by a line of the next segment; False until the nexus has been restarted


@dataclass(slots=True)
class ChainReport:
    """One chain, as far as it was checked."""

    nexus: str
    timeline: int
    segments: int = 0
    seq: int = 0  # of the last line
    digest: bytes = NO_HASH  # its hash
    signed: int = 0  # checkpoints whose signature verifies
    signed_seq: int = 0  # of the last of them: no line up to it was changed without the key


@dataclass(slots=True)
class Report:
    """What `verify` found. It stops at the first fault of each nexus."""

    chains: list[ChainReport] = field(default_factory=list)
    torn_tails: list[TornTail] = field(default_factory=list)
    accepted: list[EntryLine] = field(default_factory=list)  # where somebody accepted that a new chain begins
    faults: list[Fault] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class KnownLine:
    """A line that must be there."""

    timeline: int
    seq: int
    digest: bytes  # 32 bytes


class _FaultError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.why)
        self.fault = fault


def verify(
    directory: Path,
    *,
    public_keys: Collection[bytes] = (),
    nexus: str | None = None,
    genesis: bytes = b"",
    known: KnownLine | None = None,
) -> Report:
    """Check all chains in *directory*, or those of one nexus.

    A checkpoint must be signed by one of *public_keys* (32 bytes each) or, when there are none, by the key it names.
    With *genesis*, a fingerprint of 32 bytes, its chain of generations must begin with that genesis record and lead to
    its key. Within one timeline the signers only go on along that chain: no earlier generation signs after a later one.
    *known* must be among the lines.

    Raises:
        OSError: A file cannot be read.
    """
    report = Report()
    segments = list_segments(directory, nexus)
    for name in sorted({segment.nexus for segment in segments}):
        own = [segment for segment in segments if segment.nexus == name]
        # An empty file was created just before the process died; the next start fills it.
        own = [segment for segment in own if (directory / segment.name).stat().st_size]
        starts = [_read_header(directory / segment.name) for segment in own if segment.number == 1]
        walk = _Walk(starts, report, public_keys=public_keys, genesis=genesis, known=known, has_rests=True)
        try:
            for segment in own:
                with (directory / segment.name).open("rb") as file:
                    walk.check_segment(segment, file)
            walk.end()
        except _FaultError as exc:
            report.faults.append(exc.fault)
    return report


def verify_lines(
    nexus: str,
    chains: Mapping[int, Iterable[bytes]],
    starts: Iterable[bytes],
    *,
    genesis: bytes,
    known: KnownLine | None,
) -> Report:
    """Check the lines of *chains*, by timeline, as a nexus hands them out; *starts* are the first lines of each.

    Of a torn tail only the line that names it is there.
    """
    report = Report()
    walk = _Walk(starts, report, public_keys=(), genesis=genesis, known=known, has_rests=False)
    try:
        for timeline, lines in chains.items():
            for number, segment_lines in enumerate(_split_segments(lines), start=1):
                walk.check_segment(Segment(nexus, timeline, number), segment_lines)
        walk.end()
    except _FaultError as exc:
        report.faults.append(exc.fault)
    return report


def _split_segments(lines: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
    """Part *lines* where segments begin; each part has to be used up before the next one is asked for."""
    ahead = iter(lines)
    first = next(ahead, None)

    def take(line: bytes) -> Iterator[bytes]:
        nonlocal first
        first = None
        yield line
        for one in ahead:
            if one.startswith(b'{"kind":"segment"'):
                first = one
                return
            yield one

    while first is not None:
        yield take(first)


def _read_header(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


class _Walk:
    """Goes through the chains of one nexus in the order of their timelines."""

    def __init__(
        self,
        starts: Iterable[bytes],
        report: Report,
        *,
        public_keys: Collection[bytes],
        genesis: bytes,
        known: KnownLine | None,
        has_rests: bool,
    ) -> None:
        self._public_keys = public_keys
        self._genesis = genesis
        self._known = known
        self._has_rests = has_rests  # what a crash left after the last whole line is there to be checked
        self._sizes: dict[str, int] = {}  # bytes of whole lines, by file
        self._report = report
        self._chain: ChainReport
        self._signers: tuple[int, Chain] | None = None  # timeline and generations of the last signature
        self._number = 0
        self._has_begun = False
        self._followed = set(_list_previous(starts))  # hashes that some chain says it follows
        self._met = {NO_HASH}  # those of them that were found in lines so far
        self._torn: dict[str, tuple[Fault, bytes]] = {}  # by file, until a later line names them

    def end(self) -> None:
        """Say what is still open."""
        for fault, rest in self._torn.values():
            # A crash leaves at most part of a line; whole lines that do not follow were put there by someone.
            if b"\n" in rest:
                raise _FaultError(fault)
            self._report.torn_tails.append(TornTail(fault.file, fault.offset, len(rest), is_named=False))
        if self._known is not None:
            line = f"line {self._known.seq} of timeline {self._known.timeline}"
            raise _FaultError(Fault("", 0, 0, f"{line}, hash {self._known.digest.hex()}, is missing"))

    def check_segment(self, segment: Segment, lines: Iterable[bytes]) -> None:
        """Check one segment; what is left of *lines* after a fault is its rest."""
        if not self._has_begun or segment.timeline != self._chain.timeline:
            self._chain = ChainReport(segment.nexus, segment.timeline)
            self._report.chains.append(self._chain)
            self._number = 0
            self._has_begun = True
        start = Fault(segment.name, 1, 0, f"segment {self._number + 1} is missing before it")
        if segment.number != self._number + 1:
            self._raise(start)
        self._number = segment.number
        self._chain.segments += 1
        offset = 0
        ahead = iter(lines)
        for number, encoded in enumerate(ahead, start=1):
            here = Fault(segment.name, number, offset, "")
            try:
                line, digest = self._decode(encoded, number)
            except CorruptRowError as exc:
                if not self._has_rests:
                    self._raise(replace(here, why=str(exc)))
                # Perhaps a torn tail: a later line must say so.
                self._torn[segment.name] = (replace(here, why=str(exc)), encoded + b"".join(ahead))
                return
            self._check_line(line, segment, here)
            self._chain.seq, self._chain.digest = line.seq, digest
            if digest in self._followed:
                self._met.add(digest)
            if self._known == KnownLine(segment.timeline, line.seq, digest):
                self._known = None
            offset += len(encoded)
            self._sizes[segment.name] = offset

    def _decode(self, encoded: bytes, number: int) -> tuple[Line, bytes]:
        if number == 1:
            return decode_first_line(encoded, is_header=True)
        return decode_line(encoded, self._chain.digest)

    def _check_line(self, line: Line, segment: Segment, here: Fault) -> None:
        if line.seq != self._chain.seq + 1:
            self._raise(replace(here, why=f"number {line.seq}, want {self._chain.seq + 1}"))
        if isinstance(line, SegmentLine):
            self._check_header(line, segment, here)
        elif isinstance(line, TornTailLine):
            self._close_torn(line, here)
        elif self._torn:
            self._raise(here)
        elif isinstance(line, CheckpointLine) and line.signature:
            self._check_signature(line, here)
        elif isinstance(line, EntryLine) and line.entry.action == "audit.new-chain":
            self._report.accepted.append(line)

    def _check_header(self, line: SegmentLine, segment: Segment, here: Fault) -> None:
        says = Segment(line.nexus, line.timeline, line.segment)
        if line.format != FORMAT or says != segment:
            self._raise(replace(here, why=f"segment says that it is {says.name} in format {line.format}"))
        if here.line != 1:
            self._raise(replace(here, why="segment begins in the middle of another"))
        previous = bytes.fromhex(line.previous)  # valid hex: `decode_first_line` has read it
        if previous not in self._met if segment.number == 1 else previous != self._chain.digest:
            self._raise(replace(here, why="segment does not follow from the line before it"))

    def _close_torn(self, line: TornTailLine, here: Fault) -> None:
        if not self._has_rests:
            if self._sizes.get(line.file, 0) != line.offset:
                self._raise(replace(here, why=f"names a torn tail that {line.file} does not have"))
            self._report.torn_tails.append(TornTail(line.file, line.offset, line.size, is_named=True))
            return
        fault, rest = self._torn.get(line.file, (here, b""))
        if line.file not in self._torn or (line.offset, line.size, line.sha256) != (
            fault.offset,
            len(rest),
            hash_rest(rest),
        ):
            self._raise(replace(here, why=f"names a torn tail that {line.file} does not have"))
        del self._torn[line.file]
        self._report.torn_tails.append(TornTail(line.file, line.offset, line.size, is_named=True))

    def _check_signature(self, line: CheckpointLine, here: Fault) -> None:
        if self._public_keys and line.public_key not in self._public_keys:
            self._raise(replace(here, why="checkpoint is signed by another key"))
        if self._genesis:
            self._check_genesis(line, here)
        chain = self._chain
        message = checkpoint_message(chain.nexus, chain.timeline, line.seq, chain.digest, line.chain)
        try:
            Ed25519PublicKey.from_public_bytes(line.public_key).verify(line.signature, message)
        except (InvalidSignature, ValueError):
            self._raise(replace(here, why="signature of the checkpoint does not verify"))
        chain.signed += 1
        chain.signed_seq = line.seq

    def _check_genesis(self, line: CheckpointLine, here: Fault) -> None:
        timeline, last = self._signers or (0, None)
        try:
            signers = verify_chain(line.chain, self._genesis, verified=last)
        except ChainError:
            signers = None
        if signers is None or signers.audit_public_key != line.public_key:
            self._raise(replace(here, why="checkpoint is signed by a key that this genesis does not lead to"))
        # A new timeline begins when an older store is accepted, which may know fewer generations.
        if last is not None and timeline == self._chain.timeline and not _goes_on(signers, last):
            why = f"checkpoint is signed by generation {signers.generation}, after one by generation {last.generation}"
            self._raise(replace(here, why=why))
        self._signers = self._chain.timeline, signers

    def _raise(self, fault: Fault) -> NoReturn:
        """Raise the earliest fault: a tail that nothing names, if there is one."""
        for earlier, _ in self._torn.values():
            raise _FaultError(earlier)
        raise _FaultError(fault)


def _goes_on(signers: Chain, last: Chain) -> bool:
    return signers.digest == last.digest or signers.extends(last)


def _list_previous(starts: Iterable[bytes]) -> Iterator[bytes]:
    for encoded in starts:
        try:
            line, _ = decode_first_line(encoded, is_header=True)
        except CorruptRowError:
            continue
        if isinstance(line, SegmentLine):
            yield bytes.fromhex(line.previous)
