"""A program that says how it was started, as JSON, and then ends as its first argument says; for test_spawn."""

import atexit
import ctypes
import json
import os
import random
import signal
import ssl
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common.server.preload  # noqa: F401 — as the programs do

SIGNALS = (signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)


def describe() -> dict[str, Any]:
    """Return what is the same for every good start, but the command line."""
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    mask = os.umask(0o22)
    os.umask(mask)
    return {
        "command line": Path("/proc/self/cmdline").read_text(),
        "arguments": sys.argv[1:],
        "program": [Path(sys.argv[0]).name, __name__],
        "environ": dict(os.environ),
        "getenv": str(getenv(b"WITNESS")),
        "directory": str(Path.cwd()),
        "leads": os.getsid(0) == os.getpid(),
        "parent": os.getppid(),
        "fds": sorted(fd for fd in range(64) if _is_open(fd)),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "signals": [str(signal.getsignal(number)) for number in SIGNALS],
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "streams": [_describe_stream(stream) for stream in (sys.stdin, sys.stdout, sys.stderr)],
        "safe": sys.flags.safe_path,
        "writes_bytecode": not sys.dont_write_bytecode,
        "umask": mask,
    }


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _describe_stream(stream: Any) -> list[Any]:
    return [
        stream.fileno(),
        stream.name,
        stream.encoding,
        stream.errors,
        stream.line_buffering,
        stream.write_through,
        stream.isatty(),
    ]


def _leave_a_thread() -> None:
    """Return while a thread still has something to say, and a handler after it."""
    atexit.register(print, "at exit")
    threading.Timer(0.05, print, ["a thread"]).start()


def _raise() -> None:
    raise LookupError("for the one who started me")


def _interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, if the tests run in the background of a shell
    os.kill(os.getpid(), signal.SIGINT)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


ENDS: dict[str, Callable[[], object]] = {
    "return": lambda: None,
    "unflushed": lambda: print("the end", end=""),
    "thread": _leave_a_thread,
    "raise": _raise,
    "exit 3": lambda: sys.exit(3),
    "exit words": lambda: sys.exit("these are my last words"),
    "interrupted": _interrupt,
    "killed": _kill,
    "sleep": signal.pause,
    "echo": lambda: print(sys.stdin.read()),
    "random": lambda: print(random.random(), ssl.RAND_bytes(16).hex()),
}


if __name__ == "__main__":
    if sys.argv[1] == "describe":
        print(json.dumps(describe()))
    else:
        ENDS[sys.argv[1]]()
