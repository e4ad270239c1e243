"""The opener: real children that seal and open an escrow, and what happens when they cannot."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import DecryptionError, InvalidArgumentError, UnavailableError, WordsError
from common.keys.opener import open_escrow, seal_escrow
from common.keys.protected import Level, ProtectedBuffer, ProtectedMemory
from common.keys.recovery_key import OVERHEAD, derive_public_key, escrow_info, seal
from common.keys.words import encode_share, split

SEED = bytes(range(32))
PUBLIC_KEY = derive_public_key(SEED)
INFO = escrow_info(b"c" * 16, 1)
SHARES = split(SEED, 3, 5)


@pytest.fixture(scope="module")
def memory() -> ProtectedMemory:
    return ProtectedMemory(lowest=Level.PLAIN)


@pytest.fixture
def root_key(memory: ProtectedMemory) -> Iterator[ProtectedBuffer]:
    with memory.allocate(32) as buffer:
        buffer.fill_random()
        yield buffer


@pytest.fixture
def into(memory: ProtectedMemory) -> Iterator[ProtectedBuffer]:
    with memory.allocate(32) as buffer:
        yield buffer


@pytest.fixture
def shares(memory: ProtectedMemory) -> Iterator[list[memoryview]]:
    buffers = [memory.allocate(66) for _ in SHARES]
    for buffer, share in zip(buffers, SHARES, strict=True):
        buffer.view[:] = encode_share(share)
    yield [buffer.view for buffer in buffers]
    for buffer in buffers:
        buffer.release()


def test_escrow_round_trip(root_key: ProtectedBuffer, shares: list[memoryview], into: ProtectedBuffer) -> None:
    """A root key sealed in one child opens in another, with a threshold of shares or more."""
    sealed = seal_escrow(root_key.view, PUBLIC_KEY, INFO)
    for some in (shares[1:4], shares):
        into.view[:] = bytes(32)
        open_escrow(some, sealed, INFO, into=into.view)
        assert into.view == root_key.view


@pytest.mark.parametrize(
    ("chosen", "info", "error", "named"),
    [
        pytest.param([0, 1], INFO, WordsError, "got 2 shares, want 3", id="too few"),
        pytest.param([0, 1, 0], INFO, WordsError, "share 3 has the same number as share 1", id="one twice"),
        pytest.param([], INFO, WordsError, "got no share", id="none"),
        pytest.param([0, 1, 2], escrow_info(b"c" * 16, 2), DecryptionError, "does not open", id="another generation"),
    ],
)
def test_what_does_not_open(
    shares: list[memoryview],
    into: ProtectedBuffer,
    chosen: list[int],
    info: bytes,
    error: type[Exception],
    named: str,
) -> None:
    """The child's error reaches the parent unchanged, and the target is not written."""
    with pytest.raises(error, match=named):
        open_escrow([shares[index] for index in chosen], seal(SEED, PUBLIC_KEY, INFO), info, into=into.view)
    assert into.view == bytes(32)


def test_a_wrong_share_is_named(shares: list[memoryview], into: ProtectedBuffer) -> None:
    """A share with a flipped bit is named by its position."""
    shares[1][40] ^= 1
    with pytest.raises(WordsError, match=r"^share 2: "):
        open_escrow(shares[:3], seal(SEED, PUBLIC_KEY, INFO), INFO, into=into.view)


def test_an_escrow_of_another_size_is_refused(shares: list[memoryview], into: ProtectedBuffer) -> None:
    """An escrow that opens but does not hold a root key is refused."""
    with pytest.raises(DecryptionError, match="holds 31 bytes"):
        open_escrow(shares[:3], seal(SEED[1:], PUBLIC_KEY, INFO), INFO, into=into.view)


def test_wrong_arguments_are_refused(root_key: ProtectedBuffer, into: ProtectedBuffer) -> None:
    """A wrong public key is refused by the child; wrong sizes are refused before they reach it."""
    with pytest.raises(InvalidArgumentError, match="recovery public key"):
        seal_escrow(root_key.view, bytes(1216), INFO)
    with pytest.raises(InvalidArgumentError, match="root key is 31 bytes"):
        seal_escrow(root_key.view[:31], PUBLIC_KEY, INFO)
    with pytest.raises(InvalidArgumentError, match="is 31 bytes"):
        open_escrow([], b"", INFO, into=into.view[:31])


def test_a_child_that_takes_too_long_is_killed(root_key: ProtectedBuffer) -> None:
    """Beyond the time limit the child is killed and the call fails as unavailable."""
    with pytest.raises(UnavailableError, match=r"did not finish within 0\.001 s"):
        seal_escrow(root_key.view, PUBLIC_KEY, INFO, time_limit=0.001)


def _start_child() -> "subprocess.Popen[bytes]":
    """Start a child as the module does, and return it when it is ready."""
    child = subprocess.Popen(
        [sys.executable, "-I", "-m", "common.keys.opener"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    )
    assert child.stdout is not None
    assert os.read(child.stdout.fileno(), 1) == b"R"
    return child


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.needs("ipc_lock")
def test_a_child_is_not_swapped() -> None:
    """Once a child says it is ready, all its memory is locked, if its limits allow that."""
    with _start_child() as child:
        status = Path(f"/proc/{child.pid}/status").read_text()
        sizes = {line.split()[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
        child.kill()
    assert int(sizes["VmLck:"]) > int(sizes["VmData:"])
    assert sizes["VmSwap:"] == "0"


def test_a_child_that_may_not_lock_works() -> None:
    """Sealing works even where a process may lock almost no memory."""
    code = """
import ctypes, resource
from common.keys.opener import seal_escrow
from common.keys.recovery_key import derive_public_key
ctypes.CDLL(None).prctl(24, 14, 0, 0, 0)  # PR_CAPBSET_DROP of CAP_IPC_LOCK, which the child of root would have
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
print(len(seal_escrow(memoryview(bytes(32)), derive_public_key(bytes(32)), b"info")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{32 + OVERHEAD}\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_shows_nothing() -> None:
    """Once a child says it is ready, it cannot be dumped; its arguments are fixed and its environment is empty."""
    with _start_child() as child:
        assert child.stdin is not None
        assert child.stdout is not None
        process = Path(f"/proc/{child.pid}")
        core_limits = [line for line in (process / "limits").read_text().splitlines() if "core file size" in line]
        assert core_limits[0].split()[4:6] == ["0", "0"]
        # A process that cannot be dumped belongs to root in /proc, whichever user runs it.
        assert process.stat().st_uid == 0
        assert (process / "cmdline").read_bytes().split(b"\0")[1:-1] == [b"-I", b"-m", b"common.keys.opener"]
        child.stdin.write(b"\0")  # no request: it ends without an answer
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode != 0
