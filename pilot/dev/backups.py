"""Where the backups of a development cluster go, and the identity that opens them, side by side."""

import contextlib
import os

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.errors import InvalidArgumentError
from common.forms.bech32 import KEY_SIZE, decode_recipient, encode_identity, encode_recipient
from pilot.dev.directory import DevDirectory, DevError

_PUBLIC = "# public key: "


def find_recipient(directory: DevDirectory) -> str:
    """Return the recipient of the backups; make the folder, and the identity if there is none yet.

    Raises:
        DevError: The folder cannot be made, or the identity file is damaged.
    """
    try:
        directory.backups.mkdir(mode=0o700, exist_ok=True)
        text = directory.backup_identity.read_text()
    except FileNotFoundError:
        return _make_identity(directory)
    except (OSError, UnicodeDecodeError) as exc:
        raise DevError(f"{directory.backup_identity} cannot be read: {exc}") from exc
    for line in text.splitlines():
        with contextlib.suppress(InvalidArgumentError):
            recipient = line.removeprefix(_PUBLIC)
            decode_recipient(recipient)
            return recipient
    raise DevError(f"{directory.backup_identity} names no public key", hint="start over in a new directory")


def _make_identity(directory: DevDirectory) -> str:
    secret = os.urandom(KEY_SIZE)
    recipient = encode_recipient(X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw())
    text = f"# for development only\n{_PUBLIC}{recipient}\n{encode_identity(secret)}\n"
    directory.replace_file(directory.backup_identity, text.encode())
    return recipient
