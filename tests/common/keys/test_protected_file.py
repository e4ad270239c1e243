"""Identity files that a passphrase protects: pyrage is the other side, and costs are refused before they are paid."""

import base64
import re

import pyrage
import pytest

from common.errors import BackupError, InvalidArgumentError
from common.keys.protected_file import MAX_CONTENT, open_protected, protect

CONTENT = b"# public key: age1\nAGE-SECRET-KEY-1\n"
PASSPHRASE = b"correct horse battery staple"
CHEAP = 10  # only for tests


@pytest.fixture(scope="module")
def file() -> bytes:
    """A protected file."""
    return protect(CONTENT, PASSPHRASE, work=CHEAP)


def armour(file: bytes) -> bytes:
    """Return the text form of a file."""
    text = base64.b64encode(file)
    lines = [text[at : at + 64] for at in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN AGE ENCRYPTED FILE-----", *lines, b"-----END AGE ENCRYPTED FILE-----", b""])


def test_pyrage_opens_what_we_protect(file: bytes) -> None:
    """So does every program of age."""
    assert pyrage.passphrase.decrypt(file, PASSPHRASE.decode()) == CONTENT


def test_we_open_what_pyrage_protects() -> None:
    """At whatever cost it chooses."""
    assert open_protected(pyrage.passphrase.encrypt(CONTENT, "päss"), "päss".encode()) == CONTENT


@pytest.mark.parametrize("content", [pytest.param(b"", id="empty"), pytest.param(b"x" * MAX_CONTENT, id="largest")])
def test_every_size_comes_back(content: bytes) -> None:
    """Also in the text form."""
    file = protect(content, PASSPHRASE, work=CHEAP)
    assert open_protected(file, PASSPHRASE) == open_protected(armour(file), PASSPHRASE) == content


def test_what_is_too_large_is_refused() -> None:
    """It would need further chunks."""
    with pytest.raises(InvalidArgumentError, match="want at most 16384"):
        protect(b"x" * (MAX_CONTENT + 1), PASSPHRASE, work=CHEAP)
    other = pyrage.passphrase.encrypt(b"x" * (MAX_CONTENT + 1), "p")
    with pytest.raises(InvalidArgumentError, match="larger than any"):
        open_protected(other, b"p")


def test_another_passphrase_opens_nothing(file: bytes) -> None:
    """Nor does one that begins alike."""
    for passphrase in (b"", PASSPHRASE[:-1], PASSPHRASE + b" "):
        with pytest.raises(BackupError, match="does not open the identity file"):
            open_protected(file, passphrase)


def test_a_flipped_bit_at_every_byte_is_refused(file: bytes) -> None:
    """Before or after the work, and never read as something else. A dearer header is refused without the work."""
    for at in range(len(file)):
        for bit in (0, 5):
            changed = bytearray(file)
            changed[at] ^= 1 << bit
            if (cost := re.search(rb"-> scrypt \S{22} (\d+)\n", changed)) and int(cost[1]) > CHEAP:
                continue
            with pytest.raises((BackupError, InvalidArgumentError)):
                open_protected(bytes(changed), PASSPHRASE)


def test_every_truncation_is_refused(file: bytes) -> None:
    """Longer ones as well."""
    for end in range(len(file)):
        with pytest.raises((BackupError, InvalidArgumentError)):
            open_protected(file[:end], PASSPHRASE)
    with pytest.raises(BackupError):
        open_protected(file + b"\0", PASSPHRASE)


@pytest.mark.parametrize("work", [21, 30, 63, 99])
def test_absurd_costs_are_refused_before_any_work(file: bytes, work: int) -> None:
    """2^30 would take a terabyte."""
    dear = file.replace(b" %d\n" % CHEAP, b" %d\n" % work, 1)
    with pytest.raises(InvalidArgumentError, match=rf"asks for 2\^{work} rounds"):
        open_protected(dear, PASSPHRASE)


@pytest.mark.parametrize("work", [b"0", b"010", b"-1", b"100", b"+9", b"1e1"])
def test_odd_numbers_are_no_cost(file: bytes, work: bytes) -> None:
    """age writes them in one way."""
    with pytest.raises(InvalidArgumentError, match="not protected by a passphrase"):
        open_protected(file.replace(b" %d\n" % CHEAP, b" " + work + b"\n", 1), PASSPHRASE)


def test_a_file_to_a_recipient_is_another_kind() -> None:
    """No passphrase opens it."""
    other = pyrage.encrypt(CONTENT, [pyrage.x25519.Identity.generate().to_public()])
    with pytest.raises(InvalidArgumentError, match="not protected by a passphrase"):
        open_protected(other, PASSPHRASE)
