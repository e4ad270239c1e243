"""Files that hold identities of age, which open backups; a passphrase may protect them."""

from collections.abc import Callable
from pathlib import Path

from common.errors import BackupUnavailableError, InvalidArgumentError
from common.keys.age import MAX_IDENTITY_FILE
from common.keys.protected_file import check_protected, is_protected, open_protected


def load_identity(path: Path, ask: Callable[[str], str]) -> bytes:
    """Return what an identity file holds; *ask* asks for the passphrase where one protects it, with this prompt.

    Nothing is wiped: only for a process that ends soon. What *ask* raises comes out as it is.

    Raises:
        BackupUnavailableError: It cannot be read.
        InvalidArgumentError: It is too large, or opening it would cost too much; nobody is asked.
        BackupError: The passphrase does not open it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_IDENTITY_FILE + 1)
    except OSError as exc:
        raise BackupUnavailableError(f"{path}: {exc.strerror}") from exc
    if len(content) > MAX_IDENTITY_FILE:
        raise InvalidArgumentError(f"{path}: it is larger than {MAX_IDENTITY_FILE} bytes, so no identity file")
    if not is_protected(content):
        return content
    check_protected(content)
    return open_protected(content, encode_passphrase(ask(f"passphrase of {path}: ")))


def encode_passphrase(passphrase: str) -> bytes:
    """Return a passphrase as bytes.

    Raises:
        InvalidArgumentError: It is no text.
    """
    try:
        return passphrase.encode()
    except UnicodeEncodeError:  # the cause is not chained: it carries the passphrase
        raise InvalidArgumentError("the passphrase is not text") from None
