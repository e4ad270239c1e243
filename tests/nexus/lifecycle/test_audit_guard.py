"""A nexus whose audit files are not those that its keepers or its store remember."""

import os
from pathlib import Path

import pytest

from common.forms.mark import AuditEnd
from nexus.keepers.marks import MarkBook
from nexus.keys.audit_chain import KIND
from nexus.lifecycle.states import State
from nexus.vault.expected import Expected
from tests.nexus.cluster import NEXUS_NAME, FoundCluster, FoundedCluster, tamper
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.core import OPERATOR, SUPERUSER, NexusCore
from tests.nexus.played_keepers import PlayedKeeper


class Stopped:
    """A nexus that has served, and does not run."""

    def __init__(self, cluster: FoundedCluster, folder: Path, start: StartNexus, wait_until: WaitUntil) -> None:
        self.cluster = cluster
        self.folder = folder
        self.keepers = cluster.keepers()
        self.name = NEXUS_NAME
        self._start = start
        self._wait_until = wait_until
        core = self.start_ready()
        core.exporter.export()
        core.exporter.discard()
        core.close()
        with cluster.store.read() as reader:
            self.meta = reader.load_meta()

    def start_ready(self) -> NexusCore:
        """Start a nexus, and let it make a change once it is ready."""
        core = self._start(self.keepers, name=self.name)
        self._wait_until(lambda: core.lifecycle.state is State.READY)
        core.vault.put(SUPERUSER, "a", {"value": b"v"}, Expected(), os.urandom(16))
        return core

    def start_blocked(self, says: str) -> NexusCore:
        """Start a nexus, and see that its audit blocks it."""
        core = self._start(self.keepers, name=self.name)
        self.wait_blocked(core, says)
        return core

    def accept(self, core: NexusCore) -> None:
        """Accept a new chain, and wait until the keepers have the set that is drawn then."""
        core.audit_access.accept_new_chain(OPERATOR, "looked into")
        assert core.lifecycle.state is State.READY
        drawn = core.lifecycle.require_serving().shard_set.record.set_id
        self._wait_until(lambda: all(drawn in keeper.sets for keeper in self.keepers))

    def wait_blocked(self, core: NexusCore, says: str) -> None:
        """Wait until it has its key, and serves nothing with it."""
        self._wait_until(lambda: says in str(core.warden.list_obstacles()))
        assert core.lifecycle.state is State.RECOVERING

    def remember(self, keeper: PlayedKeeper, end: AuditEnd) -> None:
        """Let a keeper that starts anew remember the store as it is, with *end*."""
        position = self.meta.position
        mark = self.cluster.sign_mark(
            position.timeline,
            position.revision,
            control_revision=position.control_revision,
            epoch=position.epoch,
            audit=end,
        )
        keeper.remembers = mark
        keeper.boot_id = os.urandom(16)


@pytest.fixture
def stopped(found: FoundCluster, tmp_path: Path, start_nexus: StartNexus, wait_until: WaitUntil) -> Stopped:
    """With everything in place."""
    return Stopped(found(), tmp_path, start_nexus, wait_until)


FURTHER = AuditEnd(NEXUS_NAME, 1, 500, b"d" * 32)


def test_a_mark_of_lines_that_are_not_there_blocks_until_they_are_given_up(stopped: Stopped) -> None:
    """After that a mark of before blocks no more, even one that turns up when the new chain has come as far."""
    stopped.remember(stopped.keepers[0], FURTHER)
    core = stopped.start_blocked("do not reach line 500 of timeline 1, which keepers remember")
    stopped.accept(core)
    with stopped.cluster.store.read() as reader:
        assert reader.load_meta().timeline == 1
    core.close()
    stopped.remember(stopped.keepers[1], FURTHER)
    stopped.start_ready()


def test_a_mark_that_comes_later_ends_ready(stopped: Stopped, wait_until: WaitUntil) -> None:
    """A keeper that was away tells of it."""
    core = stopped.start_ready()
    stopped.remember(stopped.keepers[0], FURTHER)
    stopped.wait_blocked(core, "do not reach line 500")
    stopped.accept(core)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(AuditEnd("n2", 1, 500, b"d" * 32), id="of another nexus"),
        pytest.param(AuditEnd(NEXUS_NAME, 0, 500, b"d" * 32), id="of an earlier timeline"),
        pytest.param(AuditEnd(NEXUS_NAME, 1, 0, b"d" * 32), id="of no line"),
    ],
)
def test_marks_that_say_nothing_of_these_files(stopped: Stopped, end: AuditEnd) -> None:
    """They block nothing."""
    stopped.remember(stopped.keepers[0], end)
    stopped.start_ready()


def test_the_nexus_is_not_blocked_by_its_own_marks(stopped: Stopped) -> None:
    """Keepers tell what it gave them, after a restart and while it runs."""
    core = stopped.start_ready()
    for keeper in stopped.keepers:
        keeper.boot_id = os.urandom(16)
    core.close()
    stopped.start_ready()


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        pytest.param("DELETE FROM audit_head", "does not say any more how far", id="the head"),
        pytest.param(f"DELETE FROM control WHERE kind = '{KIND}'", "was changed outside", id="the row"),
        pytest.param(f"UPDATE control SET body = X'7B7D' WHERE kind = '{KIND}'", "was changed outside", id="its body"),
    ],
)
def test_what_the_store_says_of_the_audit_is_taken_away(stopped: Stopped, sql: str, says: str) -> None:
    """The nexus is blocked; the acceptance writes anew what is missing."""
    tamper(stopped.folder, sql)
    core = stopped.start_blocked(says)
    stopped.accept(core)
    core.close()
    stopped.start_ready()


def test_a_nexus_with_a_new_name_lets_the_store_say_so(stopped: Stopped, wait_until: WaitUntil) -> None:
    """Its first start is lawful without a head; after that a head that is missing is noticed."""
    stopped.name = "n2"
    core = stopped.start_ready()
    wait_until(lambda: (KIND, "n2") in {(row.kind, row.name) for row in stopped.cluster.load()[1]})
    core.close()
    tamper(stopped.folder, "DELETE FROM audit_head WHERE nexus = 'n2'")
    stopped.start_blocked("does not say any more how far").close()
    stopped.name = NEXUS_NAME
    stopped.start_ready()


def test_a_book_forgets_no_later_line_of_the_same_revision(stopped: Stopped) -> None:
    """A keeper is asked anew after its restart: reads went on, and the store did not."""
    book: MarkBook = stopped.cluster.book()
    for seq in (3, 9, 7):
        book.take("keeper-1", stopped.cluster.sign_mark(1, 5, control_revision=1, audit=FURTHER._replace(seq=seq)))
    end = book.list_known().find_audit_end(NEXUS_NAME, since=(1, 0))
    assert end is not None
    assert end.seq == 9
    assert book.list_known().find_audit_end(NEXUS_NAME, since=(1, 1)) is None
