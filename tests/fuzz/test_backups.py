"""The formats of a backup, decoded from arbitrary input: refused with one error, or really of that format."""

from hypothesis import given

from common.errors import BackupError, InvalidArgumentError
from common.forms.backup.header import check_signature, decode_contents, decode_header
from common.forms.backup.opened import OpenedRows, decode_opened
from common.forms.backup.reader import StreamReader
from common.forms.backup.rows import decode_row, encode_row
from common.forms.backup.tables import META, TABLES
from common.forms.bech32 import decode_recipient, encode_recipient
from common.forms.codec import parse_fields
from tests.fuzz.budget import budget
from tests.fuzz.mutations import assert_is_short, hostile, hostile_fields, hostile_text
from tests.kit.backups import CHAIN, HEADER, ROWS, make_empty_stream, make_stream

STREAM = make_stream()
ROWS_OF_TABLES = [encode_row(table, row) for table in TABLES for row in ROWS[table.name]]


def read() -> bytes:
    """Return what the opener answers."""
    rows = OpenedRows()
    reader = StreamReader(rows.take)
    reader.feed(STREAM)
    return rows.encode(reader.finish())


OPENED = read()
CONTENTS = parse_fields(OPENED)[0]


@budget(3)
@given(hostile(STREAM, make_empty_stream()))
def test_stream(stream: bytes) -> None:
    """What a nexus signed is read whole; nothing else is, and the refusal is short."""
    reader = StreamReader()
    try:
        reader.feed(stream)
        check_signature(reader.finish())
    except BackupError as exc:
        assert_is_short(exc, 200)
        return
    assert stream in (STREAM, make_empty_stream())


@budget(3)
@given(hostile_fields(parse_fields(HEADER.encode())))
def test_header(encoded: bytes) -> None:
    """A header that decodes has one form."""
    try:
        header = decode_header(encoded)
    except BackupError as exc:
        assert_is_short(exc, 200)
        return
    assert header.encode() == encoded


@budget(3)
@given(hostile_fields(parse_fields(OPENED)) | hostile_fields(parse_fields(CONTENTS)))
def test_answers_of_the_opener(encoded: bytes) -> None:
    """Whatever a broken child says is one error, or contents whose signature is checked."""
    try:
        opened = decode_opened(encoded)
    except BackupError as exc:
        assert_is_short(exc, 200)
    else:
        assert len(opened.meta) == len(META.columns)
    try:
        contents = decode_contents(encoded)
    except BackupError as exc:
        assert_is_short(exc, 200)
    else:
        assert decode_contents(contents.encode()) == contents


@budget(3)
@given(hostile(*ROWS_OF_TABLES))
def test_rows(encoded: bytes) -> None:
    """A row that decodes encodes to the same bytes."""
    for table in TABLES:
        try:
            row = decode_row(table, encoded)
        except BackupError as exc:
            assert_is_short(exc, 200)
            continue
        assert encode_row(table, row) == encoded


@budget(3)
@given(hostile_text(encode_recipient(CHAIN.genesis.audit_public_key)))
def test_recipients(text: str) -> None:
    """A recipient has one form; what is none is not quoted at length."""
    try:
        key = decode_recipient(text)
    except InvalidArgumentError as exc:
        assert_is_short(exc, 200)
        return
    assert encode_recipient(key) == text
