"""Structured logs on stderr: one JSON object for each line, or a readable form on a terminal.

Values that may be key material never appear: anything readable as bytes is shown as "<32 bytes>", a bytes literal
inside a text as "<bytes>", and an object only as the name of its type. This also holds inside dicts and lists, for
exceptions, and for what libraries log through `logging`. It cannot hold for hex and the like inside formatted text, so
an event is a literal of lower-case words, and whatever varies goes into the context:
`log.info("shard stored", set_number=7)`.

Whoever logs waits for nobody: a thread writes the lines, so that a reader of stderr that stalls holds up no call and no
wipe of keys. Lines that find `QUEUED` others waiting are dropped, and the next one that is written says how many.
"""

import atexit
import json
import logging
import math
import queue
import re
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence, Set
from datetime import date
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from common.server.termination import call_at_end

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_BYTES_LITERAL = re.compile(r"""\bb(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")""")
_FIRST = ("timestamp", "level", "logger", "event")
QUEUED = 10_000  # lines
FLUSH_S = 1.0  # for what is queued when the process ends
_PATIENCE = 5  # times that long, while lines are being written: on a busy machine the last ones say why it ended


def configure(level: str = "info", format: str = "auto") -> None:  # noqa: A002 — named as the option
    """Send all logs of this process to stderr, those of `logging` and warnings included.

    *level* is debug, info, warning or error. *format* is json, console, or auto: console when stderr is a terminal.
    """
    is_console = format == "console" or (format == "auto" and sys.stderr.isatty())
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.ExceptionRenderer(_render_exception),
        _conceal_event,
        _render_console if is_console else _render_json,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=_Logger,
        cache_logger_on_first_use=False,
    )
    atexit.register(flush)
    call_at_end(flush)
    logging.basicConfig(handlers=[_Handler()], level=_LEVELS[level], force=True)
    logging.captureWarnings(True)


def conceal(value: Any) -> Any:
    """Return what may be shown of *value*, as JSON types."""
    match value:
        case Enum():
            return value.name.lower()
        case None | bool() | int():
            return value
        case str():
            return _mask(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case date():
            return value.isoformat()
        case PurePath() | UUID():
            return str(value)
        case BaseException():
            return _mask(str(value))
    size = _size(value)
    if size is not None:
        return f"<{size} bytes>"
    match value:
        case Mapping():
            return {str(conceal(key)): conceal(item) for key, item in value.items()}
        case Sequence() | Set():
            return [conceal(item) for item in value]
        case _:
            return f"<{type(value).__name__}>"


def flush(seconds: float = FLUSH_S) -> None:
    """Wait until what was logged before is written, or nothing was within *seconds*."""
    _WRITER.flush(seconds)


class _Writer:
    """Writes lines to stderr on a thread of its own, which the first line starts. Thread-safe."""

    def __init__(self) -> None:
        self._queue: queue.Queue[str | threading.Event] = queue.Queue(QUEUED)
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._dropped = 0
        self._written = 0

    def add(self, line: str) -> None:
        """Queue *line*, or drop it when too many wait."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._dropped += 1
        if self._thread is None:
            self._start()

    def flush(self, seconds: float) -> None:
        written = threading.Event()
        try:
            self._queue.put_nowait(written)
        except queue.Full:
            return  # the reader stalls: nothing is to be gained by waiting
        for _ in range(_PATIENCE):
            before = self._written
            if self._thread is None or written.wait(seconds) or self._written == before:
                return

    def _start(self) -> None:
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="log", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            dropped, self._dropped = self._dropped, 0
            if dropped:
                _write(f'{{"level": "warning", "logger": "log", "event": "lines dropped", "count": {dropped}}}')
            _write(item)
            self._written += 1


_WRITER = _Writer()


def _write(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except Exception:  # noqa: BLE001, S110 — the thread would end, and with it the process, without a line for ever
        pass  # full disk, reader gone, closed at exit: no call may fail for it, and it cannot be reported anywhere


class _Logger:
    """Queues lines; `name` is what `structlog.get_logger` got, else the module that logs."""

    def __init__(self, name: str = "") -> None:
        self.name = name or _calling_module()

    def write(self, line: str) -> None:
        _WRITER.add(line)

    debug = info = warning = error = critical = write


class _Handler(logging.Handler):
    """Writes the records of `logging` in the same form."""

    def emit(self, record: logging.LogRecord) -> None:
        message = str(conceal(record.msg))
        arguments = record.args
        if isinstance(arguments, Mapping):
            arguments = {key: _conceal_argument(value) for key, value in arguments.items()}
        elif arguments:
            arguments = tuple(map(_conceal_argument, arguments))
        try:
            message = message % arguments if arguments else message
        except (TypeError, ValueError, KeyError):
            pass  # a format that does not fit its arguments is no reason to lose the line
        level = max(number for number in (*_LEVELS.values(), 0) if number <= record.levelno)
        context = {"exc_info": record.exc_info} if record.exc_info else {}
        structlog.get_logger(record.name).log(level or logging.DEBUG, message, **context)


def _conceal_argument(value: Any) -> Any:
    return value if isinstance(value, int | float) else conceal(value)  # %d and %f want the number itself


def _conceal_event(logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    shown = {key: conceal(value) for key, value in event.items()} | {"logger": logger.name}
    return {key: shown.pop(key) for key in _FIRST} | shown


def _render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return json.dumps(event)


def _render_console(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    exception = event.pop("exception", None)
    timestamp, level, logger, text = (event.pop(key) for key in _FIRST)
    context = "".join(f"  {key}={_printable(str(value))}" for key, value in event.items())
    line = f"{timestamp[11:23]} {level:<7} {logger}: {_printable(str(text), spaces=True)}{context}"
    if exception:
        line += "".join(f"\n    {_printable(part, spaces=True)}" for part in exception.splitlines())
    return line


def _printable(text: str, *, spaces: bool = False) -> str:
    """Quote text that a terminal would act on, or that would look like two values."""
    return text if text.isprintable() and (spaces or " " not in text) else repr(text)


def _render_exception(exc_info: ExcInfo) -> str:
    return "".join(traceback.format_exception(*exc_info)).rstrip()


def _mask(text: str) -> str:
    """Replace the bytes literals that libraries put into their messages."""
    return _BYTES_LITERAL.sub("<bytes>", text)


def _size(value: Any) -> int | None:
    """Return the size in bytes of bytes and of a protected buffer; None for anything else."""
    try:
        with memoryview(value) as view:
            return view.nbytes
    except TypeError:
        pass  # not bytes
    except ValueError:
        return 0  # a released view
    # By name: every program imports this module, so it stays free of ctypes.
    return len(value) if type(value).__name__ == "ProtectedBuffer" else None


def _calling_module() -> str:
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").startswith(("structlog", __name__)):
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", ""))
