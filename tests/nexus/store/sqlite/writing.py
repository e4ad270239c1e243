"""A process that writes to a store and says what came of it, killed or run on a failing disk by the tests beside it.

`python -m tests.nexus.store.sqlite.writing threads FILE` writes on four threads until it is killed; each line is one
put that was acknowledged. `… puts FILE COUNT` puts one after the other, and prints each outcome and the newest version
read. `… repeated FILE` puts once, then puts and repeats that request in one batch, and prints each outcome.
`… destroys FILE` puts and destroys versions of one secret, scrubs after each, and prints what was acknowledged.
`… fill FILE FILLER` puts until the disk is full, removes FILLER, which takes room, and puts again.
"""

import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from common.errors import ConflictError, ShardholdError
from nexus.store.protocol import Writer
from nexus.store.sqlite.store import SqliteStore
from tests.kit.patience import wait_until
from tests.nexus.store.contract import CALLER, make_request, make_row, put, request, threads


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


def write_destroys(store: SqliteStore) -> None:
    """Put versions of one secret for ever, and destroy each after the next one is there; every tenth prunes."""
    with store.read() as reader:
        secret = reader.load_secret("a")
        kept = reader.load_kept_versions("a")
    for version in count(secret.current_version + 1 if secret else 1):
        put(store, replace(make_row("a", version), value=f"<value {version}>".encode() * 40))
        remove(store, kept, below=version)
        kept = [version]
        while not store.scrub(seconds=1):
            pass
        print(version, flush=True)


def remove(store: SqliteStore, versions: Sequence[int], *, below: int) -> None:
    """Destroy *versions*, or prune what is *below* one."""

    def change(writer: Writer) -> None:
        if below % 10 == 0:
            writer.prune("a", below=below)
        else:
            writer.destroy("a", versions, caller=CALLER, destroyed_at=1)

    store.write(change)


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


def write_repeated(store: SqliteStore) -> None:
    """Put, and then put and repeat that in one batch, which this thread leads and commits."""
    put(store, make_row("a", 1))
    waiting, go = store._committer._waiting, threading.Event()

    def change(writer: Writer) -> None:
        if writer.find_request(CALLER, request(7)) is not None:
            raise ConflictError("repeated")  # as whoever finds a request again undoes the change
        writer.insert_version(make_row("a", 2), caller=CALLER)
        writer.save_request(make_request(7, (2,)))

    def submit() -> None:
        try:
            store.write(change)
            outcome = "made"
        except ShardholdError as exc:
            outcome = type(exc).__name__
        sys.stdout.write(f"{outcome}\n")

    def repeat() -> None:
        assert wait_until(lambda: len(waiting) == 1, seconds=20)
        submit()

    def hold(_: Writer) -> None:
        holding.set()
        go.wait()

    def release_both() -> None:
        assert wait_until(lambda: len(waiting) == 2, seconds=20)
        go.set()

    holding = threading.Event()
    first = threading.Thread(target=store.write, args=(hold,))
    second = threading.Thread(target=repeat)
    release = threading.Thread(target=release_both)
    first.start()
    holding.wait()
    second.start()
    release.start()
    submit()
    for thread in (first, second, release):
        thread.join()
    print("newest", read_newest(store), flush=True)


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
    elif mode == "destroys":
        write_destroys(opened)
    elif mode == "repeated":
        write_repeated(opened)
    elif mode == "puts":
        write_puts(opened, int(sys.argv[3]))
    else:
        fill(opened, Path(sys.argv[3]))
    opened.close()
