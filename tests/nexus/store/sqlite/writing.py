"""A process that writes to a store and says what came of it, killed or run on a failing disk by the tests beside it.

`python -m tests.nexus.store.sqlite.writing threads FILE` writes on four threads until it is killed; each line is one
put that was acknowledged. `… puts FILE COUNT` puts one after the other, and prints each outcome and the newest version
read.
`… fill FILE FILLER` puts until the disk is full, removes FILLER, which takes room, and puts again.
"""

import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from common.errors import ShardholdError
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.store.contract import make_row, put, request, threads


def write_on_threads(store: SqliteStore) -> None:
    """Write versions of four secrets for ever."""

    def work(name: int) -> None:
        path = f"team/{name}"
        with store.read() as reader:
            secret = reader.load_secret(path)
        for version in count(secret.current_version + 1 if secret else 1):
            put(store, make_row(path, version), request_id=request(name << 64 | version))
            sys.stdout.write(f"{path} {version}\n")
            sys.stdout.flush()

    with threads(work, 4):
        pass


def write_puts(store: SqliteStore, puts: int) -> None:
    """Write *puts* versions of one secret, each what the one before it came to."""
    for _ in range(puts):
        version = read_newest(store) or 0
        try:
            put(store, make_row("a", version + 1))
            outcome = "ok"
        except ShardholdError as exc:
            outcome = type(exc).__name__
        print(outcome, read_newest(store), flush=True)


def fill(store: SqliteStore, filler: Path) -> None:
    """Put until the disk is full, then make room and put again."""
    written = 0
    while True:
        try:
            put(store, replace(make_row("a", written + 1), value=b"v" * 4_000))
        except ShardholdError as exc:
            print(type(exc).__name__, read_newest(store) == written, flush=True)
            break
        written += 1
    filler.unlink()
    put(store, make_row("a", written + 1))
    print("ok", read_newest(store) == written + 1, flush=True)


def read_newest(store: SqliteStore) -> int | None:
    """Read the newest version; None: reading is refused."""
    try:
        with store.read() as reader:
            row = reader.load_version("a", 0)
    except ShardholdError:
        return None
    return row.version if row else 0


if __name__ == "__main__":
    mode, file = sys.argv[1:3]
    opened = SqliteStore.open(Path(file))
    if mode == "threads":
        write_on_threads(opened)
    elif mode == "puts":
        write_puts(opened, int(sys.argv[3]))
    else:
        fill(opened, Path(sys.argv[3]))
    opened.close()
