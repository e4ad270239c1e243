"""The process that writes a backup from a copy of the store, as its parent sees it."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import msgspec

from common.errors import BackupError, BackupUnavailableError
from common.forms.backup.export import Answer, Request, Signature
from common.forms.backup.header import Header, sign_digest
from nexus.admin.backup.children import Child, Children
from nexus.store.protocol import StoreCopy

TIME_LIMIT_S: Final = 3600.0  # far beyond the minute that a million secrets take
_MAX_LINE: Final = 64 << 10  # bytes
_DECODER: Final = msgspec.json.Decoder(Answer)
_DIED: Final = "the backup process died, or was not done in time"


def write_backup(
    copy: StoreCopy,
    header: Header,
    recipients: Sequence[str],
    fd: int,
    sign: Callable[[bytes], bytes],
    *,
    children: Children,
    time_limit: float = TIME_LIMIT_S,
) -> Mapping[str, int]:
    """Write *copy* to the descriptor, encrypted and synced; return the number of rows by table.

    *sign* signs with the audit key of the generation that *header* names; what it raises comes out as it is.

    Raises:
        BackupError: The store holds what cannot be backed up.
        BackupUnavailableError: The process cannot be started, died, was not done in time, or the disk refuses.
    """
    request = Request(str(copy.path), header.encode(), tuple(recipients))
    with _start(copy.program, fd, time_limit, children) as child:
        answer = _talk(child, request)
        if answer.digest:
            answer = _talk(child, Signature(sign_digest(answer.digest, sign)))
    if answer.error or not answer.rows:
        kind = BackupError if answer.is_damaged else BackupUnavailableError
        raise kind(f"backup failed: {answer.error or _DIED}")
    return answer.rows


@contextmanager
def _start(program: str, fd: int, time_limit: float, children: Children) -> Iterator[Child]:
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-m", program, str(fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[fd],
            cwd="/",
            env={},
        )
    except OSError as exc:
        raise BackupUnavailableError(f"the backup process cannot be started: {exc.strerror}") from exc
    deadline = threading.Timer(time_limit, child.kill)
    deadline.daemon = True
    try:
        _limit(deadline)
        children.adopt(child)
        yield child
    finally:
        deadline.cancel()
        child.kill()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        child.wait()


def _limit(deadline: threading.Timer) -> None:
    try:
        deadline.start()
    except RuntimeError as exc:
        raise BackupUnavailableError("the backup process has no time limit: no thread can be started") from exc


def _talk(child: Child, message: Request | Signature) -> Answer:
    if child.stdin is None or child.stdout is None:
        raise BackupUnavailableError("the backup process has no pipes")
    try:
        child.stdin.write(msgspec.json.encode(message) + b"\n")
        child.stdin.flush()
        return _DECODER.decode(child.stdout.readline(_MAX_LINE))
    except (OSError, msgspec.DecodeError) as exc:
        raise BackupUnavailableError(_DIED) from exc
