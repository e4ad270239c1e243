"""Protected memory: what each level does to its pages, and that an arena never hands out what another key left."""

import copy
import ctypes
import gc
import os
import pickle
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.errors import ProtectionError
from common.keys.protected import SLOT, Level, ProtectedBuffer, ProtectedMemory, random_into, read_into, wipe_bytes
from tests.kit.patience import join

PAGE = resource.getpagesize()

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc and memfd_secret are Linux's")
LEVELS = [
    pytest.param(Level.PLAIN, id="plain"),
    pytest.param(Level.LOCKED, id="locked"),
    pytest.param(Level.SECRET, id="secret", marks=[ON_LINUX, pytest.mark.needs("memfd_secret")]),
]


def make(level: Level = Level.LOCKED, size: int = PAGE) -> ProtectedMemory:
    return ProtectedMemory(size=size, highest=level, lowest=level)


def page_flags(memory: ProtectedMemory) -> set[str]:
    """Return the VmFlags of the mapping that the arena is in."""
    [(start, _)] = memory.ranges
    for block in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", block)
        if bounds and int(bounds[1], 16) <= start < int(bounds[2], 16):
            return set(block[block.index("VmFlags:") :].split()[1:])
    raise AssertionError("the arena is mapped nowhere")


def run_child(code: str, *, memlock: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run *code* in a new interpreter, with RLIMIT_MEMLOCK and without CAP_IPC_LOCK if asked for."""
    before = ""
    if memlock is not None:
        before = f"import resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, ({memlock}, {memlock}))\n"
        if os.getuid() == 0:
            before += "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    code = f"from common.keys.protected import *\nfrom common.errors import ProtectionError\n{before}{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", LEVELS)
def test_buffers_start_zeroed_and_take_what_is_written(level: Level) -> None:
    """At every level a buffer has exactly the requested bytes, zero at first, and changing it changes no other."""
    memory = make(level)
    assert memory.level is level
    one, other = memory.allocate(33), memory.allocate(32)
    assert (len(one), one.view.nbytes, one.view.itemsize, one.view.readonly) == (33, 33, 1, False)
    assert bytes(one.view) == bytes(33)
    one.view[:] = b"\xff" * 33
    assert bytes(other.view) == bytes(32)
    with pytest.raises(ValueError, match="assign"):
        one.view[:] = b"\xff" * 34


def test_levels_are_tried_from_the_best_down() -> None:
    """The arena is at the best level available, and never above the highest that is wanted."""
    assert ProtectedMemory(size=PAGE, highest=Level.LOCKED, lowest=Level.PLAIN).level is Level.LOCKED
    assert ProtectedMemory(size=PAGE, lowest=Level.PLAIN).level >= Level.LOCKED
    with pytest.raises(ProtectionError, match="no level allowed"):
        ProtectedMemory(highest=Level.PLAIN, lowest=Level.LOCKED)


@ON_LINUX
def test_locked_pages_are_never_swapped_dumped_or_inherited() -> None:
    """Locked pages have the flags lo (mlocked), dd (in no core) and dc (not copied to a fork)."""
    assert {"lo", "dd", "dc"} <= page_flags(make(Level.LOCKED))


@ON_LINUX
@pytest.mark.needs("memfd_secret")
def test_secret_pages_are_unreadable_for_everybody_else() -> None:
    """The process itself cannot read secret pages in /proc/self/mem, and no descriptor of them is left open."""
    descriptors = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
    memory = make(Level.SECRET)
    assert sorted(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    assert {"lo", "dc"} <= page_flags(memory)
    buffer = memory.allocate(32)
    buffer.fill_random()
    [(start, _)] = memory.ranges
    with Path("/proc/self/mem").open("rb", buffering=0) as own:
        own.seek(start)
        with pytest.raises(OSError, match=r"."):
            own.read(32)


@ON_LINUX
def test_short_memlock_is_named() -> None:
    """With too little RLIMIT_MEMLOCK the error gives both levels' reasons, the limit, and how much is wanted."""
    child = run_child(
        "try: ProtectedMemory(size=1 << 20)\nexcept ProtectionError as exc: print(exc)", memlock=64 * 1024
    )
    assert child.stderr == ""
    assert "level 3: " in child.stdout
    assert "level 2: mlock of 1048576 bytes" in child.stdout
    assert "RLIMIT_MEMLOCK is 65536 bytes, want 1048576 more" in child.stdout


@ON_LINUX
def test_plain_level_needs_no_memlock() -> None:
    """Level 1 works where nothing may be locked, but only if it is allowed."""
    child = run_child("print(ProtectedMemory(lowest=Level.PLAIN).level.name)", memlock=0)
    assert (child.stdout, child.stderr) == ("PLAIN\n", "")


@ON_LINUX
@pytest.mark.parametrize("level", ["PLAIN", "LOCKED"])
def test_forked_child_dies_on_touching_the_pages(level: str) -> None:
    """A fork gets no copy of a key: it is killed when it touches the pages."""
    child = run_child(
        f"import os\nbuffer = ProtectedMemory(highest=Level.{level}, lowest=Level.{level}).allocate(32)\n"
        "pid = os.fork()\n"
        "if pid == 0: buffer.view[0]; os._exit(0)\n"
        "print(os.WTERMSIG(os.waitpid(pid, 0)[1]))\n"
        "buffer.view[0]"
    )
    assert (child.stdout, child.returncode) == ("11\n", 0)


def test_full_arena_says_so() -> None:
    """An arena never hands out more than it has; released memory can be allocated again."""
    memory = make(size=PAGE)
    buffers = [memory.allocate(SLOT) for _ in range(PAGE // SLOT)]
    with pytest.raises(ProtectionError, match=f"{PAGE} bytes has no room for {SLOT} more"):
        memory.allocate(1)
    buffers[3].release()
    buffers[4].release()
    both = memory.allocate(2 * SLOT)  # two neighbours became one
    assert len(both) == 2 * SLOT


@pytest.mark.parametrize("size", [0, -1])
def test_nothing_is_no_size(size: int) -> None:
    """A buffer of zero bytes is refused, and so is an arena."""
    with pytest.raises(ProtectionError, match="want at least 1"):
        make().allocate(size)
    with pytest.raises(ProtectionError, match="want at least 1"):
        ProtectedMemory(size=size)


def test_release_wipes_and_closes() -> None:
    """After a release the bytes are zero and the view is closed; a second release is no error; `with` releases."""
    memory = make()
    [(start, _)] = memory.ranges
    with memory.allocate(32) as buffer:
        buffer.fill_random()
        view = buffer.view
        assert ctypes.string_at(start, 32) == bytes(view) != bytes(32)
    assert ctypes.string_at(start, 32) == bytes(32)
    with pytest.raises(ValueError, match="released"):
        view[0]
    buffer.release()
    assert ctypes.string_at(start, 32) == bytes(32)


def test_dropped_buffer_is_released() -> None:
    """A buffer that an error path forgot is wiped and its place is given back."""
    memory = make(size=PAGE)
    [(start, _)] = memory.ranges
    for _ in range(3 * PAGE // SLOT):
        buffer = memory.allocate(32)
        buffer.fill_random()
        del buffer
    assert ctypes.string_at(start, PAGE) == bytes(PAGE)


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda view: view[1:], id="a slice"),
        pytest.param(pickle.PickleBuffer, id="a call on another thread"),
        pytest.param((ctypes.c_char * 8).from_buffer, id="a pointer"),
    ],
)
def test_place_in_use_goes_to_no_other_key(use: Callable[[memoryview], object]) -> None:
    """While a view still points there, release wipes but gives nothing back; later content is wiped at the end."""
    memory = make(size=PAGE)
    buffer = memory.allocate(PAGE - SLOT)
    buffer.fill_random()
    [(start, _)] = memory.ranges
    held = use(buffer.view)
    buffer.release()
    assert ctypes.string_at(start, PAGE) == bytes(PAGE)
    with pytest.raises(ProtectionError, match="no room"):
        memory.allocate(2 * SLOT)
    ctypes.memset(start, 1, 8)
    del held, buffer
    assert ctypes.string_at(start, PAGE) == bytes(PAGE)
    assert len(memory.allocate(PAGE)) == PAGE


def test_wipe_zeroes_everything_and_buffers_stay_valid() -> None:
    """A seal zeroes all keys at once, and their owners may still release them."""
    memory = make()
    buffers = [memory.allocate(32) for _ in range(4)]
    for buffer in buffers:
        buffer.fill_random()
    memory.wipe()
    assert all(bytes(buffer.view) == bytes(32) for buffer in buffers)
    buffers[0].view[:] = b"\x01" * 32
    for buffer in buffers:
        buffer.release()


def test_views_keep_the_pages_mapped() -> None:
    """A view outlives the arena object; once the view is gone too, the pages are unmapped, so arenas do not pile up."""
    memory = make()
    [bounds] = memory.ranges
    view = memory.allocate(32).view[1:]
    del memory
    gc.collect()
    view[:] = b"\x01" * 31
    assert ctypes.string_at(bounds[0], 32) == b"\x00" + bytes(view)
    del view
    for _ in range(300):  # more than RLIMIT_MEMLOCK holds at 64 KiB each
        ProtectedMemory()


def test_cycle_with_its_arena_is_collected() -> None:
    """An arena and buffers that only a cycle holds are collected, even if an owner releases in its finaliser."""

    class Owner:
        def __init__(self) -> None:
            self.memory = make()
            self.buffer = self.memory.allocate(32)
            self.me = self

        def __del__(self) -> None:
            self.buffer.release()

    for _ in range(20):
        Owner()
    gc.collect()
    assert not any(isinstance(thing, Owner) for thing in gc.get_objects())


@ON_LINUX
def test_exit_wipes_before_the_pages_go() -> None:
    """At exit the arena is wiped by an exit handler that runs before those registered earlier."""
    child = run_child("")
    assert child.returncode == 0
    code = (
        "import atexit\n"
        "atexit.register(lambda: print(bytes(buffer.view) == bytes(32)))\n"
        "import common.keys.protected as p\n"
        "buffer = p.ProtectedMemory().allocate(32); buffer.fill_random(); print(bytes(buffer.view) != bytes(32))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "True\nTrue\n"


def test_content_is_shown_to_nobody() -> None:
    """No repr, pickle, copy or comparison reveals the bytes."""
    memory = make()
    one, other = memory.allocate(32), memory.allocate(32)
    one.view[:] = other.view[:] = b"A" * 32
    assert repr(one) == "<ProtectedBuffer of 32 bytes>"
    assert repr(memory) == f"<ProtectedMemory level 2, {PAGE} bytes>"
    assert one != other
    assert len({one, other}) == 2
    for thing in (one, memory):
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied"):
                attempt(thing)


def test_threads_share_an_arena() -> None:
    """Threads that allocate and release at the same time never see each other's bytes."""
    memory = make(size=4 * PAGE)
    faults: list[str] = []

    def work(mark: int) -> None:
        for round_ in range(300):
            with memory.allocate(1 + round_ % 130) as buffer:
                if any(buffer.view):
                    faults.append("not zero")
                buffer.view[:] = bytes((mark,)) * len(buffer)
                if bytes(buffer.view) != bytes((mark,)) * len(buffer):
                    faults.append("overwritten")

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread, 60)
    assert faults == []
    memory.allocate(4 * PAGE).release()  # everything came back, in one piece


class Arena(RuleBasedStateMachine):
    """In any order of allocations and releases, no two buffers overlap, and each holds what its owner wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = make(Level.PLAIN)
        self.held: list[tuple[ProtectedBuffer, bytes]] = []

    @rule(size=st.integers(1, 5 * SLOT), mark=st.integers(1, 255))
    def allocate(self, size: int, mark: int) -> None:
        taken = sum(-(-len(buffer) // SLOT) * SLOT for buffer, _ in self.held)
        try:
            buffer = self.memory.allocate(size)
        except ProtectionError:
            assert taken + 5 * SLOT * (len(self.held) + 2) > PAGE  # full, or free in pieces that are too small
            return
        assert not any(buffer.view)
        buffer.view[:] = bytes((mark,)) * size
        self.held.append((buffer, bytes(buffer.view)))

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.held:
            self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))[0].release()

    @invariant()
    def each_holds_its_own(self) -> None:
        assert all(bytes(buffer.view) == content for buffer, content in self.held)

    def teardown(self) -> None:
        for buffer, _ in self.held:
            buffer.release()
        self.memory.allocate(PAGE).release()


TestArena = Arena.TestCase
TestArena.settings = settings(deadline=None, max_examples=30, stateful_step_count=30)


@pytest.mark.parametrize("size", [1, 32, 256, 257, 5000])
def test_random_fills_every_byte(size: int) -> None:
    """No position stays zero over several fills, even beyond the 256 bytes that one call gives."""
    target, seen = bytearray(size), bytearray(size)
    for _ in range(12):
        random_into(target)
        seen = bytearray(old | new for old, new in zip(seen, target, strict=True))
    assert all(seen)
    random_into(memoryview(target)[:0])


def test_wipe_bytes_zeroes_in_place() -> None:
    """Bytes and bytearrays are zeroed in place; a shared one-byte object is refused."""
    data: bytes | bytearray
    for data in (os.urandom(32), bytearray(os.urandom(32)), b"".join([os.urandom(3)])):
        size = len(data)
        wipe_bytes(data)
        assert data == bytes(size)
    wipe_bytes(b"")
    with pytest.raises(ValueError, match="length 1"):
        wipe_bytes(b"a")


def test_read_into_waits_until_full() -> None:
    """Data that arrives in pieces is assembled in place."""
    reading, writing = os.pipe()
    buffer = make().allocate(32)
    writer = threading.Thread(target=lambda: [os.write(writing, bytes((part,))) for part in range(40)])
    writer.start()
    read_into(reading, buffer.view)
    join(writer, 5)
    assert bytes(buffer.view) == bytes(range(32))
    assert os.read(reading, 8) == bytes(range(32, 40))
    os.close(reading)
    os.close(writing)


def test_read_into_keeps_nothing_of_a_cut_message() -> None:
    """When the other side goes away, the error says how much arrived and the buffer holds zeros."""
    reading, writing = os.pipe()
    os.write(writing, b"secret")
    os.close(writing)
    buffer = make().allocate(32)
    with pytest.raises(EOFError, match="after 6 bytes, want 32"):
        read_into(reading, buffer.view)
    assert bytes(buffer.view) == bytes(32)
    os.close(reading)
