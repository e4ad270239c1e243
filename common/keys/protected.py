"""Protected memory: the only place where keys that outlive a call are kept.

One arena of pages for each process, cut into slots of 64 bytes; keys share pages, since locked memory is scarce. Three
levels:

    3  SECRET  memfd_secret: the pages leave the kernel's own map; no /proc/PID/mem, ptrace or core sees them
    2  LOCKED  anonymous pages, never swapped (mlock), in no core (MADV_DONTDUMP)
    1  PLAIN   anonymous pages; for development only

A forked child gets no pages of any level (MADV_DONTFORK): it dies when it touches them.
"""

import atexit
import contextlib
import ctypes
import enum
import errno
import mmap
import os
import resource
import sys
import threading
import weakref
from collections import deque
from types import TracebackType
from typing import Any, Never, Self

from common.errors import ProtectionError

SLOT = 64  # bytes; every allocation is rounded up to it, so that no two keys share a cache line

_SYS_MEMFD_SECRET = 447  # the same number on every architecture that has the call; Linux 5.14
_GETENTROPY_MAX = 256  # bytes for each call

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.memset.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
_libc.getentropy.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_MAP_FAILED = ctypes.c_void_p(-1).value


class Level(enum.IntEnum):
    """How well memory is protected; more is better."""

    PLAIN = 1
    LOCKED = 2
    SECRET = 3


class ProtectedMemory:
    """An arena of protected pages. Thread-safe; wiped at exit; unmapped once neither it nor any view of it is left."""

    level: Level

    def __init__(self, *, size: int = 64 * 1024, highest: Level = Level.SECRET, lowest: Level = Level.LOCKED) -> None:
        """Map *size* bytes, rounded up to whole pages, at the best level between *highest* and *lowest*.

        Raises:
            ProtectionError: No such level is available; the message says why, level by level.
        """
        if size <= 0:
            raise ProtectionError(f"arena of {size} bytes, want at least 1")
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        refusals: list[str] = []
        for number in range(highest, lowest - 1, -1):
            try:
                address = _map(size, Level(number))
            except OSError as exc:
                refusals.append(f"level {number}: {exc.strerror or exc}")
            else:
                self.level = Level(number)
                break
        else:
            raise ProtectionError(_refusal(size, refusals))
        self._pages = (ctypes.c_char * size).from_address(address)
        weakref.finalize(self._pages, _unmap, address, size).atexit = False  # other threads may still run at exit
        self._address = address
        self._size = size
        self._lock = threading.Lock()
        self._free = [(0, size)]  # (offset, length), sorted by offset, never adjacent
        self._returned: deque[tuple[int, int]] = deque()  # a finaliser may run inside allocate, where it cannot lock
        wipe_bytes_at(address, size)  # takes the pages now: running out of memory later would be a SIGBUS
        _arenas.add(self)

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The address ranges, (first, one past the last), that a memory scan leaves out."""
        return [(self._address, self._address + self._size)]

    @property
    def free(self) -> int:
        """How many bytes no buffer has now."""
        with self._lock:
            self._collect()
            return sum(room for _, room in self._free)

    def allocate(self, size: int) -> "ProtectedBuffer":
        """Return a buffer of exactly *size* bytes, all zero.

        Raises:
            ProtectionError: The arena has no room.
        """
        if size <= 0:
            raise ProtectionError(f"buffer of {size} bytes, want at least 1")
        length = -(-size // SLOT) * SLOT
        with self._lock:
            self._collect()
            place = next((i for i, (_, room) in enumerate(self._free) if room >= length), None)
            if place is None:
                raise ProtectionError(f"protected memory of {self._size} bytes has no room for {length} more")
            offset, room = self._free[place]
            self._free[place : place + 1] = [(offset + length, room - length)] if room > length else []
        return ProtectedBuffer(self, offset, size, length)

    def _lend(self, offset: int, size: int, length: int) -> tuple[memoryview, "weakref.finalize[[int, int], Any]"]:
        piece = (ctypes.c_char * size).from_address(self._address + offset)
        # The piece lives until its last view, slices included, is gone; until then no other key gets the place.
        lease = weakref.finalize(piece, self._take_back, offset, length)
        lease.atexit = False
        return memoryview(piece).cast("B"), lease

    def _take_back(self, offset: int, length: int) -> None:
        wipe_bytes_at(self._address + offset, length)
        self._returned.append((offset, length))

    def wipe(self) -> None:
        """Zero everything: at a seal, at exit, at SIGTERM. Buffers stay valid, but hold zeros."""
        wipe_bytes_at(self._address, self._size)

    def _collect(self) -> None:
        while self._returned:
            self._give_back(*self._returned.popleft())

    def _give_back(self, offset: int, length: int) -> None:
        before = [piece for piece in self._free if piece[0] < offset]
        after = self._free[len(before) :]
        if before and sum(before[-1]) == offset:
            offset, length = before[-1][0], before[-1][1] + length
            before.pop()
        if after and offset + length == after[0][0]:
            length += after.pop(0)[1]
        self._free = [*before, (offset, length), *after]

    def __repr__(self) -> str:
        return f"<ProtectedMemory level {self.level.value}, {self._size} bytes>"

    def __reduce__(self) -> Never:
        raise TypeError("protected memory cannot be pickled or copied")


class ProtectedBuffer:
    """A piece of protected memory with one owner, who releases it. Compared by identity; never shows its content.

    Its place goes to another key only once no slice of `view` is left either. A buffer that is dropped without a
    release is wiped at that point.
    """

    view: memoryview  # writable, exactly as many bytes as were asked for; closed by release

    def __init__(self, memory: ProtectedMemory, offset: int, size: int, length: int) -> None:
        """Made by `ProtectedMemory.allocate` only."""
        self._memory = memory  # keeps the pages mapped even while a cycle that holds both is collected
        self._size = size
        self._held = [memory._address + offset]  # popped by the first release; list.pop is atomic
        self.view, self._lease = memory._lend(offset, size, length)

    def __len__(self) -> int:
        return self._size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def fill_random(self) -> None:
        """Fill the buffer from the kernel's generator, with no copy elsewhere."""
        random_into(self.view)

    def release(self) -> None:
        """Wipe the buffer and give its place back. Idempotent; any thread may call it."""
        try:
            address = self._held.pop()
        except IndexError:
            return
        if self._lease.alive:  # else it was collected in a cycle, which took the place back
            wipe_bytes_at(address, self._size)
        with contextlib.suppress(BufferError):  # in use by a call on another thread: closed when that call returns
            self.view.release()

    def __repr__(self) -> str:
        return f"<ProtectedBuffer of {self._size} bytes>"

    def __reduce__(self) -> Never:
        raise TypeError("a protected buffer cannot be pickled or copied")


def wipe_bytes(data: bytes | bytearray) -> None:
    """Zero *data* in place, even `bytes`, for a result that a library could give us in no other way.

    Only for an object that we own alone, fresh from such a call: all holders of a `bytes` share it. CPython only, where
    a pointer to a `bytes` argument points at the object itself.

    Raises:
        ValueError: *data* is a single byte as `bytes`: CPython shares one object for each of these.
    """
    if isinstance(data, bytes):
        if len(data) == 1:
            raise ValueError("bytes of length 1 are shared by the whole interpreter, want a bytearray")
        _libc.memset(data, 0, len(data))
    else:
        data[:] = bytes(len(data))


def wipe_bytes_at(address: int, size: int) -> None:
    """Zero *size* bytes at *address*."""
    ctypes.memset(address, 0, size)


def random_into(view: memoryview | bytearray) -> None:
    """Fill *view* from the kernel's generator, with no copy elsewhere. Waits until the generator is seeded.

    Raises:
        ProtectionError: The kernel has no such generator.
    """
    with memoryview(view).cast("B") as target:
        for start in range(0, len(target), _GETENTROPY_MAX):
            piece = target[start : start + _GETENTROPY_MAX]
            if _libc.getentropy((ctypes.c_char * len(piece)).from_buffer(piece), len(piece)) != 0:
                raise ProtectionError(f"no random bytes: {os.strerror(ctypes.get_errno())}")


def read_into(fd: int, view: memoryview) -> None:
    """Read from *fd* straight into *view* until it is full.

    Raises:
        EOFError: The other side closed too early; *view* then holds zeros.
    """
    filled = 0
    while filled < len(view):
        count = os.readv(fd, [view[filled:]])
        if count == 0:
            view[:] = bytes(len(view))
            raise EOFError(f"end of file after {filled} bytes, want {len(view)}")
        filled += count


_arenas: weakref.WeakSet[ProtectedMemory] = weakref.WeakSet()


@atexit.register
def _wipe_arenas() -> None:
    for arena in list(_arenas):
        arena.wipe()


def _map(size: int, level: Level) -> int:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    if level is Level.SECRET:
        fd = _memfd_secret()
        try:
            os.ftruncate(fd, size)
            address = _libc.mmap(None, size, protection, mmap.MAP_SHARED, fd, 0)
            failure = ctypes.get_errno()
        finally:
            os.close(fd)  # at once: anyone who can duplicate it can map the pages
    else:
        address = _libc.mmap(None, size, protection, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        failure = ctypes.get_errno()
    if address in (None, _MAP_FAILED):
        raise OSError(failure, f"mapping {size} bytes: {os.strerror(failure)}")
    try:
        if level is Level.LOCKED and _libc.mlock(address, size) != 0:
            failure = ctypes.get_errno()
            raise OSError(failure, f"mlock of {size} bytes: {os.strerror(failure)}")
        if sys.platform == "linux":
            _advise(address, size, mmap.MADV_DONTFORK)
            if level is not Level.SECRET:  # those pages are in no core anyway
                _advise(address, size, mmap.MADV_DONTDUMP)
    except OSError:
        _libc.munmap(address, size)
        raise
    return int(address)


def _memfd_secret() -> int:
    if sys.platform != "linux":
        raise OSError(errno.ENOSYS, "memfd_secret: Linux only")
    fd = _libc.syscall(ctypes.c_long(_SYS_MEMFD_SECRET), ctypes.c_ulong(os.O_CLOEXEC))
    if fd < 0:
        failure = ctypes.get_errno()
        raise OSError(failure, f"memfd_secret: {os.strerror(failure)}")
    return int(fd)


def _advise(address: int, size: int, advice: int) -> None:
    if _libc.madvise(address, size, advice) != 0:
        failure = ctypes.get_errno()
        raise OSError(failure, f"madvise {advice}: {os.strerror(failure)}")


def _unmap(address: int, size: int) -> None:
    wipe_bytes_at(address, size)
    _libc.munmap(address, size)


def _refusal(size: int, refusals: list[str]) -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    message = f"memory cannot be protected: {'; '.join(refusals) or 'no level allowed'}"
    if limit != resource.RLIM_INFINITY:
        message += f" (RLIMIT_MEMLOCK is {limit} bytes, want {size} more than is locked already)"
    return message
