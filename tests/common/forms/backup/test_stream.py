"""The stream of a backup: what was written is read, and nothing else."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BackupError
from common.forms.backup.header import Contents, check_signature, decode_contents, decode_header, sign_digest
from common.forms.backup.reader import StreamReader
from common.forms.backup.rows import decode_row, encode_row
from common.forms.backup.tables import TABLES, TABLES_BY_VERSION, Kind, Row, Table
from common.forms.backup.writer import END, FRAME, MAGIC, MAX_FRAME, ROW, SIGNATURE, TRAILER, frame
from common.forms.codec import fields, u64
from tests.kit.backups import CHAIN, HEADER, INCARNATION, ROWS, make_empty_stream, make_stream
from tests.kit.chains import ChainMaker

STREAM = make_stream()
OTHER = ChainMaker(cluster_id=b"o" * 16, seed=b"b" * 32).add()


def read(stream: bytes, piece: int = 1 << 20) -> tuple[Contents, list[tuple[str, Row]]]:
    """Read a stream in pieces; return what it held."""
    found: list[tuple[str, Row]] = []
    reader = StreamReader(lambda table, row: found.append((table.name, row)))
    for at in range(0, len(stream), piece):
        reader.feed(stream[at : at + piece])
    return reader.finish(), found


def split(stream: bytes) -> list[bytes]:
    """Return the frames of a stream."""
    frames, at = [], len(MAGIC)
    while at < len(stream):
        end = at + FRAME.size + FRAME.unpack_from(stream, at)[1]
        frames.append(stream[at:end])
        at = end
    return frames


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_what_was_written_is_read(piece: int) -> None:
    """Header, rows and counts, however the stream is cut into pieces."""
    contents, found = read(STREAM, piece)
    assert contents.header == HEADER
    assert found == [(table.name, row) for table in TABLES for row in ROWS[table.name]]
    assert contents.rows == {name: len(rows) for name, rows in ROWS.items()}
    assert check_signature(contents, genesis=CHAIN.genesis.fingerprint) == CHAIN.chain
    assert decode_contents(contents.encode()) == contents


def test_a_stream_of_version_1_is_read() -> None:
    """As `tests.kit.backups` made it with commit 0f2022d, the last program that knew no destroyed versions."""
    stream = (Path(__file__).parent / "version-1.stream").read_bytes()
    contents, found = read(stream)
    assert stream.startswith(b"shardhold backup 1\n")
    assert check_signature(contents, genesis=CHAIN.genesis.fingerprint) == CHAIN.chain
    assert contents.rows == {table.name: len(ROWS[table.name]) for table in TABLES_BY_VERSION[1]}
    secrets = [row for name, row in found if name == "secrets"]
    assert secrets == [("app/a", INCARNATION, 2, 7), ("app/ä", INCARNATION, 1, 8)]
    with pytest.raises(BackupError, match="does not go on with secrets"):  # nor is one version another
        read(MAGIC + stream[len(MAGIC) :])


def test_a_flipped_bit_is_refused_wherever_it_is() -> None:
    """At every byte: it does not decode, its digest or its signature does not verify."""
    for at in range(len(STREAM)):
        damaged = bytearray(STREAM)
        damaged[at] ^= 1
        with pytest.raises(BackupError):
            check_signature(read(bytes(damaged))[0])


def test_a_cut_stream_is_refused_wherever_it_ends() -> None:
    """Also where a frame ends; and what follows the end is refused too."""
    reader = StreamReader()
    for byte in STREAM:
        with pytest.raises(BackupError, match="cut off"):
            reader.finish()
        reader.feed(bytes([byte]))
    reader.finish()
    for more in (b"\0", frame(ROW, b"")):
        with pytest.raises(BackupError):
            read(STREAM + more)


def test_frames_of_another_place_are_refused() -> None:
    """Each frame left out, doubled, and swapped with the next one."""
    frames = split(STREAM)
    changed = [frames[:at] + frames[at + 1 :] for at in range(len(frames))]
    changed += [frames[: at + 1] + frames[at:] for at in range(len(frames))]
    changed += [frames[:at] + frames[at : at + 2][::-1] + frames[at + 2 :] for at in range(len(frames) - 1)]
    for one in changed:
        with pytest.raises(BackupError):
            read(MAGIC + b"".join(one))


def reseal(frames: list[bytes]) -> bytes:
    """Make a stream of *frames*, whose last two are made anew: somebody has the audit key, and writes nonsense."""
    content = MAGIC + b"".join(frames[:-2])
    digest = hashlib.sha256(content).digest()
    return content + frame(TRAILER, digest) + frame(SIGNATURE, sign_digest(digest, CHAIN.key.sign))


def test_what_is_signed_has_to_be_true_as_well() -> None:
    """A table that is left out, given twice or has another name; a number of rows, or a digest of them, of others."""
    frames = split(STREAM)
    assert reseal(frames) == STREAM
    secrets = next(at for at, one in enumerate(frames) if b"secrets" in one)
    end = next(at for at in range(secrets, len(frames)) if frames[at][:1] == END)
    empty = frame(END, fields(u64(0), hashlib.sha256().digest()))
    for changed in (
        frames[:secrets] + frames[end + 1 :],
        frames[: end + 1] + frames[secrets:],
        [*frames[:end], empty, *frames[end + 1 :]],
        frames[: secrets + 1] + frames[end:],
        [one.replace(b"secrets", b"secrete") for one in frames],
        [*frames[:-2], frames[secrets], *frames[-2:]],
        [*frames[:end], frame(ROW, b""), *frames[end:]],
        frames[1:],
    ):
        with pytest.raises(BackupError):
            read(reseal(changed))


def test_frames_of_another_backup_are_refused() -> None:
    """Trailer and signature of another one do not fit."""
    frames, others = split(STREAM), split(make_empty_stream())
    with pytest.raises(BackupError, match="digest"):
        read(MAGIC + b"".join([*frames[:-2], *others[-2:]]))
    contents, _ = read(MAGIC + b"".join([*frames[:-1], others[-1]]))
    with pytest.raises(BackupError, match="no nexus of this cluster made it"):
        check_signature(contents)


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        pytest.param(lambda: b"shardhold backup 3\n" + STREAM[len(MAGIC) :], "newer program", id="newer version"),
        pytest.param(lambda: b"age-encryption.org/v1\n", "no backup of Shardhold", id="something else"),
        pytest.param(lambda: b"", "cut off", id="empty"),
        pytest.param(lambda: MAGIC + FRAME.pack(b"H", MAX_FRAME + 1), "want at most", id="huge frame"),
        pytest.param(lambda: make_stream(header=replace(HEADER, revision=301)), "another state", id="header of 301"),
        pytest.param(lambda: make_stream({**ROWS, "meta": []}), "no meta row", id="no meta row"),
        pytest.param(
            lambda: make_stream({**ROWS, "secrets": ROWS["secrets"][::-1]}), "not in their order", id="wrong order"
        ),
        pytest.param(
            lambda: make_stream({**ROWS, "control": [*ROWS["control"], ROWS["control"][-1]]}),
            "not in their order",
            id="row twice",
        ),
    ],
)
def test_a_stream_that_no_nexus_writes_is_refused(stream: Callable[[], bytes], why: str) -> None:
    """With a reason that says what is wrong."""
    with pytest.raises(BackupError, match=why):
        read(stream())


def test_a_backup_by_another_cluster_is_refused() -> None:
    """Its own chain verifies; it does not begin with the genesis that was asked for."""
    header = replace(
        HEADER, cluster_id=OTHER.genesis.cluster_id, generation=OTHER.chain.generation, chain=tuple(OTHER.records)
    )
    (meta,) = ROWS["meta"]
    row = (meta[0], header.cluster_id, *meta[2:11], header.generation, meta[12])
    contents, _ = read(make_stream({**ROWS, "meta": [row]}, header, OTHER.key.sign))
    assert check_signature(contents).digest == OTHER.chain.digest
    with pytest.raises(BackupError, match="another cluster"):
        check_signature(contents, genesis=CHAIN.genesis.fingerprint)


def test_a_backup_that_somebody_else_signed_is_refused() -> None:
    """Everybody can encrypt to the recipients; only a nexus of the cluster signs."""
    contents, _ = read(make_stream(sign=OTHER.key.sign))
    with pytest.raises(BackupError, match="no nexus of this cluster made it"):
        check_signature(contents)


def test_a_chain_that_leads_elsewhere_is_refused() -> None:
    """The signer has to be that of the generation that the rows depend on."""
    header = replace(HEADER, chain=HEADER.chain[:-1])
    with pytest.raises(BackupError, match="leads to another"):
        check_signature(read(make_stream(header=header))[0])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(("app", b"i", 1), id="value missing"),
        pytest.param(("app", b"i", 1, True), id="bool"),
        pytest.param(("app", b"i", None, 1), id="null"),
        pytest.param((b"app", b"i", 1, 1), id="bytes as text"),
        pytest.param(("app", b"i", 1 << 63, 1), id="number too large"),
        pytest.param(("\ud800", b"i", 1, 1), id="no UTF-8"),
    ],
)
def test_a_row_of_another_form_is_not_written(row: Row) -> None:
    """A store that returns something else is damaged."""
    with pytest.raises(BackupError):
        encode_row(TABLES[2], row)


def _rows_of(table: Table) -> st.SearchStrategy[Row]:
    kinds = {
        Kind.INTEGER: st.integers(-(1 << 63), (1 << 63) - 1),
        Kind.TEXT: st.text(st.characters(codec="utf-8")),
        Kind.BYTES: st.binary(),
    }
    columns = (kinds[one.kind] | st.none() if one.is_nullable else kinds[one.kind] for one in table.columns)
    return st.tuples(*columns)


@given(st.sampled_from(TABLES).flatmap(lambda table: st.tuples(st.just(table), _rows_of(table))))
def test_every_row_comes_back(given_row: tuple[Table, Row]) -> None:
    """Of every table, with every value that its columns take."""
    table, row = given_row
    encoded = encode_row(table, row)
    assert decode_row(table, encoded) == row
    for other in (encoded + b"n", encoded[:-1]):
        with pytest.raises(BackupError):
            decode_row(table, other)


@given(st.binary())
def test_noise_is_no_backup(noise: bytes) -> None:
    """Whatever is fed, it is one error."""
    for decode in (lambda: read(MAGIC + noise), lambda: decode_header(noise), lambda: decode_contents(noise)):
        with pytest.raises(BackupError):
            decode()
    for table in TABLES:
        with pytest.raises(BackupError):
            decode_row(table, noise)
