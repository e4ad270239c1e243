"""An audited cluster whose root key is replaced while its exporter works, as the driver of a rotation does it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexus.access.audit.continuity import Continuity
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.keys.opened import Root, Serving
from nexus.keys.outbox import append_entry, is_authentic_head
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import ShardSet
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.store.protocol import OutboxRow, Writer
from tests.kit.patience import at_most
from tests.nexus.access.audit.exports import list_alarms, list_exported
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.cluster import NEXUS_NAME, FoundedCluster
from tests.nexus.failing_store import FailingStore
from tests.nexus.rotated import flip, follow, make_successor


def do_nothing() -> None:
    """For a moment at which nothing happens."""


class Flipping:
    """One nexus on the store of a cluster: its exporter, its audit, and the key that it has now."""

    def __init__(self, folder: Path, cluster: FoundedCluster) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.cluster = cluster
        self.serving: Serving = cluster.prove_without_points()
        self.store = FailingStore(cluster.store)
        self.log = AuditLog.open(folder, nexus=NEXUS_NAME, timeline=1)
        self.lifecycle = Lifecycle(State.RECOVERING, on_change=lambda state: None, on_failure=pytest.fail)
        self.lifecycle.install(self.serving)
        self.replaced: list[RootKey] = []  # and not wiped yet
        self.changes: list[tuple[int, str]] = []  # revision and path of every entry that was committed
        self.exporter = self.make_exporter()

    def make_exporter(self) -> Exporter:
        """Make an exporter, as a process has that starts now."""
        return Exporter(self.store, self.log, borrow_key=self.borrow)

    @contextmanager
    def borrow(self) -> Iterator[RootKey]:
        """Lend the root key of now."""
        with self.lifecycle.borrow() as serving:
            yield serving.root_key

    def change(self, *paths: str) -> None:
        """Commit a change with an entry for each path, and tell the exporter."""

        def write(writer: Writer) -> list[OutboxRow]:
            key = self.serving.root_key
            return [append_entry(writer, key, NEXUS_NAME, make_entry(path).encode()) for path in paths]

        with self.lifecycle.borrow():
            rows = self.store.write(write)
        for row, path in zip(rows, paths, strict=True):
            self.changes.append((row.revision, path))
            self.exporter.take(row)

    def flip(
        self, *, between: Callable[[], object] = do_nothing, before_floor: Callable[[], object] = do_nothing
    ) -> None:
        """Let another root key follow.

        *between* runs when that is committed, and nobody has the new key yet; *before_floor* when there is the new key,
        and the floor is the one of before.
        """
        cluster, successor = self.cluster, make_successor(self.cluster, self.serving)
        path = f"generation {successor.generation}"

        def change(writer: Writer) -> Callable[[], None]:
            link, standing = flip(writer, cluster, self.serving, successor)
            append_entry(writer, successor.root_key, NEXUS_NAME, make_entry(path).encode())
            self.changes.append((writer.revision, path))

            def swap() -> None:
                between()
                self.cluster = follow(cluster, successor, link)
                shard_set = ShardSet(self.cluster.record, self.serving.shard_set.label, [])
                self.serving.root = Root(successor.root_key, shard_set, self.cluster.chain)
                before_floor()
                self.serving.floor.raise_to(standing)

            return swap

        self.replaced.append(self.serving.root_key)
        self.cluster.store.write(change, alone=True, on_commit=lambda swap: swap())

    def wipe_replaced(self) -> None:
        """Wipe the keys of before, as soon as nobody borrows them any more."""
        assert self.lifecycle.wait_earlier(seconds=at_most(5))
        while self.replaced:
            self.replaced.pop().release()

    def work(self) -> None:
        """Export and discard once, as the thread does."""
        self.exporter.export()
        self.exporter.discard()

    def restart(self) -> None:
        """Go on as the next process does, which proves the key on the store, and looks whether the files are whole."""
        self.close()
        self.serving = self.cluster.prove_without_points()
        self.lifecycle.install(self.serving)
        self.log = AuditLog.open(self.folder, nexus=NEXUS_NAME, timeline=1)
        self.exporter = self.make_exporter()
        assert self.find_gap() == ""

    def find_gap(self) -> str:
        """Say what the files lack, as the store remembers them."""
        files = Continuity(self.store, self.log)
        return files.find_gap(self.serving.root_key, has_begun=True, remembered=None)

    def check(self) -> None:
        """See that every entry is in the files once, nothing was refused or missed, and the head is of the key of now.

        Then the same again after a restart, in which nothing may be left to do.
        """
        self.wipe_replaced()
        for again in (do_nothing, self.restart):
            again()
            for _ in range(2):
                self.work()
            assert sorted(list_exported(self.folder)) == sorted(self.changes)
            assert list_alarms(self.folder) == []
            assert [alarm.count for alarm in self.exporter.alarms] == [0, 0]
            with self.store.read() as reader:
                assert reader.load_audit(NEXUS_NAME, limit=9) == []
                head = reader.load_audit_head(NEXUS_NAME)
            assert head is not None
            assert is_authentic_head(self.serving.root_key, head)

    def close(self) -> None:
        """Wipe the keys, and close the files."""
        self.log.close()
        self.wipe_replaced()
        self.lifecycle.wipe()
