"""Identity files that a passphrase protects: age files with one scrypt recipient, in one chunk.

The format is that of age-encryption.org/v1, so `age -d -i FILE` asks for the passphrase. On primitives of
`cryptography`, since pyrage chooses the cost by itself, works at it with the interpreter's lock held, and begins before
anybody has seen what a file asks for. Rules:

1. The cost stands in the header, which nobody has authenticated yet: one beyond `MOST_WORK` is refused before any work.
2. Each key is drawn or derived for one file, by a random salt, file key and nonce: so the nonce of each encryption
   is a constant of the format.
3. Every error but that of cost is one error: a wrong passphrase and a changed file look alike.
"""

import base64
import binascii
import hmac
import os
import re
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.errors import BackupError, InvalidArgumentError

WORK: Final = 18  # log2 of scrypt's N: 256 MiB and about a second
MOST_WORK: Final = 20  # 1 GiB
MAX_CONTENT: Final = 16 << 10  # bytes; an identity has less than 100

_VERSION: Final = b"age-encryption.org/v1\n"
_LABEL: Final = b"age-encryption.org/v1/scrypt"
_HEADER: Final = re.compile(
    rb"age-encryption\.org/v1\n-> scrypt ([A-Za-z0-9+/]{22}) ([1-9][0-9]?)\n([A-Za-z0-9+/]{43})\n---"
)
_MAC: Final = re.compile(rb" ([A-Za-z0-9+/]{43})\n")
_ARMOUR: Final = re.compile(
    rb"-----BEGIN AGE ENCRYPTED FILE-----\r?\n([A-Za-z0-9+/=\r\n]+)-----END AGE ENCRYPTED FILE-----\s*"
)
_SALT_SIZE: Final = 16
_FILE_KEY_SIZE: Final = 16
_NONCE_SIZE: Final = 16
_TAG_SIZE: Final = 16
_ZERO_NONCE: Final = bytes(12)  # rule 2: of the file key's wrap
_LAST_CHUNK: Final = bytes(11) + b"\x01"  # rule 2: the first chunk, which is the last


def is_protected(content: bytes) -> bool:
    """Say whether a file begins as one that is encrypted by age, in either of its forms."""
    return content.startswith((_VERSION.rstrip(), b"-----BEGIN AGE"))


def protect(content: bytes, passphrase: bytes, *, work: int = WORK) -> bytes:
    """Encrypt *content*, at most 16 KiB, to a passphrase; takes memory and time as *work* says.

    Neither argument is wiped: only for a process that ends soon.
    """
    if len(content) > MAX_CONTENT:
        raise InvalidArgumentError(f"content is {len(content)} bytes, want at most {MAX_CONTENT}")
    salt, file_key = os.urandom(_SALT_SIZE), os.urandom(_FILE_KEY_SIZE)
    wrap = ChaCha20Poly1305(_stretch(passphrase, salt, work)).encrypt(_ZERO_NONCE, file_key, None)
    header = b"%s-> scrypt %s %d\n%s\n---" % (_VERSION, _encode(salt), work, _encode(wrap))
    nonce = os.urandom(_NONCE_SIZE)
    chunk = ChaCha20Poly1305(_derive(file_key, nonce, b"payload")).encrypt(_LAST_CHUNK, content, None)
    return b"%s %s\n%s%s" % (header, _encode(_authenticate(file_key, header)), nonce, chunk)


def check_protected(file: bytes) -> None:
    """Check, without any work, that a passphrase may open *file*.

    Raises:
        InvalidArgumentError: It would cost too much, or is of another kind: to recipients, or larger.
    """
    _parse(file)


def open_protected(file: bytes, passphrase: bytes) -> bytes:
    """Return the content of a file that *passphrase* protects, armoured or not; raises as `check_protected`.

    Raises:
        BackupError: The passphrase is another one, or the file was changed.
    """
    header, mac, payload = _parse(file)
    nonce, chunk = payload[:_NONCE_SIZE], payload[_NONCE_SIZE:]
    try:
        stretched = _stretch(passphrase, _decode(header[1]), int(header[2]))
        file_key = ChaCha20Poly1305(stretched).decrypt(_ZERO_NONCE, _decode(header[3]), None)
        if not hmac.compare_digest(_authenticate(file_key, header[0]), _decode(mac)):
            raise InvalidTag
        return ChaCha20Poly1305(_derive(file_key, nonce, b"payload")).decrypt(_LAST_CHUNK, chunk, None)
    except (InvalidTag, ValueError) as exc:
        raise BackupError("the passphrase does not open the identity file, or the file was changed") from exc


def _parse(file: bytes) -> tuple[re.Match[bytes], bytes, bytes]:
    """Return the header of a file, its MAC as text, and what follows."""
    file = _remove_armour(file)
    header = _HEADER.match(file)
    if header is None:
        raise InvalidArgumentError("the identity file is not protected by a passphrase in the way of age")
    work = int(header[2])
    if work > MOST_WORK:  # rule 1
        raise InvalidArgumentError(f"the identity file asks for 2^{work} rounds of scrypt, want at most 2^{MOST_WORK}")
    mac = _MAC.match(file, header.end())
    if mac is None or len(file) - mac.end() > _NONCE_SIZE + MAX_CONTENT + _TAG_SIZE:
        raise InvalidArgumentError("the identity file is cut off, or larger than any")
    return header, mac[1], file[mac.end() :]


def _stretch(passphrase: bytes, salt: bytes, work: int) -> bytes:
    return Scrypt(salt=_LABEL + salt, length=32, n=1 << work, r=8, p=1).derive(passphrase)


def _derive(file_key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(file_key)


def _authenticate(file_key: bytes, header: bytes) -> bytes:
    return hmac.digest(_derive(file_key, b"", b"header"), header, "sha256")


def _remove_armour(file: bytes) -> bytes:
    armoured = _ARMOUR.fullmatch(file)
    if armoured is None:
        return file
    try:
        return base64.b64decode(b"".join(armoured[1].split()), validate=True)
    except binascii.Error as exc:
        raise InvalidArgumentError("the armour of the identity file is damaged") from exc


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data).rstrip(b"=")


def _decode(text: bytes) -> bytes:
    data = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    if _encode(data) != text:
        raise ValueError("not the one base64 of these bytes")
    return data
