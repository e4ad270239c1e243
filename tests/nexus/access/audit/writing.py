"""A process that writes to the audit and says what came of it, killed or run on a failing disk by the tests beside it.

`python -m tests.nexus.access.audit.writing threads DIRECTORY` appends on four threads until it is killed; each line is
an entry that was acknowledged. `… export DIRECTORY STORE` puts secrets and exports their entries until it is killed;
each line is a revision. `… fill DIRECTORY FILLER` appends until the disk is full, then from the reserve, removes
FILLER, which takes room, and waits until it can append again. `… appends DIRECTORY COUNT` appends and prints each
outcome.
"""

import os
import sys
from itertools import count
from pathlib import Path

from common.errors import AuditUnavailableError
from common.server.logs import configure
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.store.protocol import OutboxRow, Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import wait_until
from tests.nexus.access.audit.keyed import FixedKey, append, make_entry
from tests.nexus.store.contract import CALLER, make_row, threads


def say(text: str) -> None:
    """Print a line whole, so that the lines of threads do not mix."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def append_on_threads(log: AuditLog) -> None:
    """Append for ever."""

    def work(name: int) -> None:
        for number in count():
            path = f"{os.getpid()}/{name}/{number}"
            log.append(make_entry(path))
            say(path)

    with threads(work, 4):
        pass


def export(log: AuditLog, file: Path) -> None:
    """Put and export for ever."""
    store = SqliteStore.open(file)
    exporter = Exporter(store, log, borrow_key=FixedKey().borrow)
    exporter.start()
    with store.read() as reader:
        secret = reader.load_secret("a")
    for version in count(secret.current_version + 1 if secret else 1):
        row = store.write(lambda writer, version=version: put(writer, version))  # type: ignore[misc]
        say(str(row.revision))
        exporter.take(row)


def put(writer: Writer, version: int) -> OutboxRow:
    """Put a version, with an authentic entry."""
    writer.insert_version(make_row("a", version), caller=CALLER)
    return append(writer, make_entry(f"a {version}").encode())


def fill(log: AuditLog, filler: Path) -> None:
    """Append until the disk is full; then what only the reserve allows; then make room."""
    entry = make_entry("a", detail="x" * 8_000)
    try:
        for _ in range(10_000):
            log.append(entry)
    except AuditUnavailableError as exc:
        say(f"full: {exc}")
    reserved = 0
    try:
        for _ in range(10_000):
            log.append(entry, reserve=True)
            reserved += len(entry.encode())
    except AuditUnavailableError:
        say(f"reserve of a mebibyte: {reserved > 1_000_000}")
    filler.unlink()
    wait_until(lambda: not log.failing, seconds=10)
    log.append(entry)
    say("ok")


def append_some(log: AuditLog, appends: int) -> None:
    """Append and sync, and say how it went."""
    for number in range(appends):
        try:
            log.append(make_entry(str(number)))
            log.sync()
            say("ok")
        except AuditUnavailableError:
            say("AuditUnavailableError")
            wait_until(lambda: not log.failing, seconds=10)


if __name__ == "__main__":
    configure()
    mode, directory = sys.argv[1:3]
    opened = AuditLog.open(Path(directory), nexus="nexus-1", timeline=1)
    if mode == "threads":
        append_on_threads(opened)
    elif mode == "export":
        export(opened, Path(sys.argv[3]))
    elif mode == "fill":
        fill(opened, Path(sys.argv[3]))
    else:
        append_some(opened, int(sys.argv[3]))
    opened.close()
