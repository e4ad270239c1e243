"""The opener: a short-lived, exec'd, non-dumpable child for work that a library can do only on `bytes` and `str`.

The parent keeps secrets in protected memory only: it writes them from there straight to the child, and reads the result
straight back into it. What the libraries leave in memory dies with the child.

Rules:
- The child makes itself non-dumpable, locks its memory where it may, and only then says `READY`; until then the parent
  writes nothing.
- The request is operation and arguments in the codec's form, then end of file; the answer is one byte, then result or
  message.
- Nothing goes through argv or the environment, which is empty; stderr goes nowhere.
- A child that has not finished within the time limit is killed.
"""

import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from common.errors import (
    BackupError,
    BackupUnavailableError,
    DecryptionError,
    InvalidArgumentError,
    ShardholdError,
    UnavailableError,
    WordsError,
)
from common.forms.codec import parse_fields
from common.keys.protected import read_into
from common.keys.recovery_key import OVERHEAD

TIME_LIMIT_S = 10.0  # a run takes about 0.2 s

_READY = b"R"
_SUCCEEDED = b"\0"
# Errors that reach the parent unchanged; any other ends the child without an answer.
_ERRORS: dict[bytes, type[ShardholdError]] = {
    b"A": InvalidArgumentError,
    b"B": BackupError,
    b"D": DecryptionError,
    b"U": BackupUnavailableError,
    b"W": WordsError,
}
_LENGTH = struct.Struct(">I")

Child = subprocess.Popen[bytes]

_SEAL_ESCROW = b"seal-escrow"
_OPEN_ESCROW = b"open-escrow"
_READ_BACKUP = b"read-backup"
_ROOT_KEY_SIZE = 32


def seal_escrow(root_key: memoryview, public_key: bytes, info: bytes, *, time_limit: float = TIME_LIMIT_S) -> bytes:
    """Seal *root_key* (32 bytes) to the recovery public key, bound to *info*.

    Raises:
        InvalidArgumentError: *public_key* is not a recovery public key.
        UnavailableError: The child cannot be started, died, or was not done in time.
    """
    if len(root_key) != _ROOT_KEY_SIZE:
        raise InvalidArgumentError(f"root key is {len(root_key)} bytes, want {_ROOT_KEY_SIZE}")
    with _run([_SEAL_ESCROW, root_key, public_key, info], time_limit) as answer:
        sealed = _read_all(answer)
        if len(sealed) != _ROOT_KEY_SIZE + OVERHEAD:
            raise EOFError(f"{len(sealed)} bytes of a sealed root key")
        return sealed


def open_escrow(
    shares: Sequence[memoryview], sealed: bytes, info: bytes, *, into: memoryview, time_limit: float = TIME_LIMIT_S
) -> None:
    """Open an escrow with at least a threshold of recovery shares in wire form, into 32 bytes of protected memory.

    On failure *into* holds zeros or what it held before.

    Raises:
        WordsError: A share fails its check, there are too few, or they do not belong together; shares count from 1.
        DecryptionError: The shares belong to another recovery key, or the escrow is not what was sealed.
        UnavailableError: The child cannot be started, died, or was not done in time.
    """
    if len(into) != _ROOT_KEY_SIZE:
        raise InvalidArgumentError(f"buffer for the root key is {len(into)} bytes, want {_ROOT_KEY_SIZE}")
    with _run([_OPEN_ESCROW, sealed, info, *shares], time_limit) as answer:
        read_into(answer, into)


def read_backup(
    path: str,
    identity: memoryview | bytes,
    *,
    time_limit: float,
    on_start: Callable[[Child], None] = lambda child: None,
) -> bytes:
    """Read the backup at *path* through; return its contents and control rows, as `common.forms.backup.opened` decodes.

    *identity* is an X25519 secret key, 32 bytes, or the content of an identity file of age. *on_start* gets the child,
    which takes long for a large backup, so that somebody else can kill it.

    Raises:
        BackupError: It is not whole, or not for this identity.
        BackupUnavailableError: The file cannot be read.
        InvalidArgumentError: There is no such identity.
        UnavailableError: The child cannot be started, died, or was not done in time.
    """
    with _run([_READ_BACKUP, path.encode(), identity], time_limit, on_start) as answer:
        return _read_all(answer)


@contextmanager
def _run(
    request: Sequence[bytes | memoryview], time_limit: float, on_start: Callable[[Child], None] = lambda child: None
) -> Iterator[int]:
    """Start a child, hand it *request*, and yield the descriptor of its result once it reports success."""
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", "common.keys.opener"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,  # no buffer of ours between the pipe and protected memory
            cwd="/",
            env={},
        )
    except OSError as exc:
        raise UnavailableError(f"the opener cannot be started: {exc.strerror}") from exc
    if child.stdin is None or child.stdout is None:
        raise UnavailableError("the opener has no pipes")
    deadline = threading.Timer(time_limit, child.kill)
    deadline.daemon = True
    try:
        _start(deadline)
        on_start(child)
        answer = child.stdout.fileno()
        if os.read(answer, 1) != _READY:
            raise EOFError("not ready")
        _write_request(child.stdin.fileno(), request)
        child.stdin.close()
        outcome = os.read(answer, 1)
        if (error := _ERRORS.get(outcome)) is not None:
            raise error(_read_all(answer).decode())
        if outcome != _SUCCEEDED:
            raise EOFError("no outcome")
        yield answer
    except (EOFError, BrokenPipeError) as exc:
        child.kill()
        raise UnavailableError(f"the opener died or did not finish within {time_limit:g} s") from exc
    finally:
        deadline.cancel()
        child.stdin.close()
        child.stdout.close()
        child.kill()
        child.wait()


def _start(deadline: threading.Timer) -> None:
    try:
        deadline.start()
    except RuntimeError as exc:
        raise UnavailableError("the opener has no time limit: no thread can be started") from exc


def _write_request(fd: int, parts: Sequence[bytes | memoryview]) -> None:
    """Write *parts* in the codec's form, each straight from its own memory."""
    for part in parts:
        for piece in (memoryview(_LENGTH.pack(len(part))), memoryview(part)):
            rest = piece
            while rest:
                rest = rest[os.writev(fd, [rest]) :]


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _read_all(fd: int) -> bytes:
    pieces = []
    while piece := os.read(fd, 65536):
        pieces.append(piece)
    return b"".join(pieces)


def _seal(root_key: bytes, public_key: bytes, info: bytes) -> bytes:
    from common.keys import recovery_key

    return recovery_key.seal(root_key, public_key, info)


def _open(sealed: bytes, info: bytes, *shares: bytes) -> bytes:
    from common.keys import recovery_key, words

    root_key = recovery_key.open_sealed(sealed, words.combine(_decode_shares(shares)), info)
    if len(root_key) != _ROOT_KEY_SIZE:
        raise DecryptionError(f"the escrow holds {len(root_key)} bytes, want {_ROOT_KEY_SIZE}")
    return root_key


def _decode_shares(shares: Sequence[bytes]) -> list[str]:
    from common.keys import words

    decoded = []
    for position, share in enumerate(shares, start=1):
        try:
            decoded.append(words.decode_share(share))
        except WordsError as exc:
            raise WordsError(f"share {position}: {exc}") from exc
    return decoded


def _read_backup(path: bytes, identity: bytes) -> bytes:
    from common.keys import age

    return age.read_backup(path, identity)


_OPERATIONS: dict[bytes, Callable[..., bytes]] = {
    _SEAL_ESCROW: _seal,
    _OPEN_ESCROW: _open,
    _READ_BACKUP: _read_backup,
}


def _serve() -> NoReturn:
    """Run as the child: one request, one answer."""
    from common.keys.hardening import harden_process, lock_memory

    harden_process()
    lock_memory()
    os.write(1, _READY)
    operation, *arguments = parse_fields(_read_all(0))
    try:
        answer = _SUCCEEDED + _OPERATIONS[operation](*arguments)
    except ShardholdError as exc:
        kind = next(letter for letter, error in _ERRORS.items() if isinstance(exc, error))
        answer = kind + str(exc).encode()
    _write_all(1, answer)
    os._exit(0)


if __name__ == "__main__":
    _serve()
