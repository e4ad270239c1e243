"""The warden of a cluster whose root key followed another one: marks of other generations, and its own."""

import threading
from pathlib import Path

import pytest

from common.errors import ShardholdError, UnavailableError, WrongStateError
from common.forms.audit.verify import verify
from common.forms.mark import verify_mark
from nexus.keys.root_key import RootKey
from nexus.lifecycle.states import State
from nexus.store.protocol import Writer
from tests.kit.patience import at_most, join
from tests.nexus.cluster import FoundCluster, is_wiped
from tests.nexus.conftest import StartNexus, WaitUntil
from tests.nexus.rotated import rotate, sign_by_successor


def no_entry(writer: Writer, key: RootKey) -> None:
    """For a change that is not audited."""


def test_a_nexus_of_a_later_generation_marks_with_its_chain(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Keepers can verify its marks from genesis on; checkpoints of the audit embed the same chain."""
    cluster = rotate(found())
    keepers = cluster.keepers()
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    wait_until(lambda: bool(keepers[0].marks))
    signed = keepers[0].marks[-1]
    assert signed.chain == cluster.chain.records
    mark = verify_mark(signed, cluster_id=cluster.cluster_id, genesis=cluster.genesis)
    assert (mark.generation, mark.chain_seq) == (2, 1)
    core.close()
    report = verify(core.folder, genesis=cluster.genesis)
    assert report.faults == []
    assert report.chains[-1].signed > 0


def test_a_mark_of_the_generation_before_blocks_nothing(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """A true one is older; one that was signed after the flip is by a dead key, and an alarm names its keeper."""
    first = found()
    true = first.sign_mark(1, 1)
    cluster = rotate(first)
    keepers = cluster.keepers()
    keepers[0].remembers = true
    keepers[1].remembers = first.sign_mark(1, 9999)
    core = start_nexus(keepers)
    wait_until(lambda: core.states == [State.READY])
    wait_until(lambda: bool(core.warden.list_alarms()))
    assert core.warden.find_newer_mark() is None
    (alarm,) = [line for line in core.warden.list_alarms() if "dead key" in line]
    assert alarm == (
        "keeper-2 remembers a rollback mark that was signed with the dead key of generation 1: timeline 1, "
        "revision 9999"
    )
    assert core.lifecycle.state is State.READY


def test_a_mark_of_the_next_generation_blocks_until_the_older_store_is_accepted(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil
) -> None:
    """Although the store seems to have come further; once it is accepted, that timeline is given up for good."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[2].remembers = sign_by_successor(cluster, revision=1)
    core = start_nexus(keepers)
    wait_until(lambda: any("of generation 1, and" in line for line in core.warden.list_obstacles()))
    assert core.lifecycle.state is State.RECOVERING

    def accept() -> bool:
        meta = cluster.load()[0]
        try:
            return core.warden.accept(meta.timeline, meta.revision, no_entry, actor="") == 2
        except WrongStateError:  # the key is still to come
            return False

    wait_until(accept)
    assert cluster.load()[0].last_generation == 3  # above what the mark tells
    wait_until(lambda: core.pool.count_holders() >= cluster.record.threshold)  # else nobody gives the key back
    again = start_nexus(keepers)
    wait_until(lambda: again.states == [State.READY])
    assert again.warden.find_newer_mark() is None


def test_a_seal_does_not_wait_for_the_opener_of_an_accepted_store(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The child that seals the new key to the custodians may be slow; the acceptance then changes nothing."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[2].remembers = sign_by_successor(cluster, revision=1)
    core = start_nexus(keepers)
    wait_until(lambda: core.warden._executor.held is not None)
    opener = tmp_path / "opener"
    opener.write_text(f"#!/bin/sh\ntouch {tmp_path}/asked\nuntil [ -e {tmp_path}/go ]; do sleep 0.05; done\n")
    opener.chmod(0o700)
    monkeypatch.setattr("common.keys.opener.sys.executable", str(opener))
    outcomes = list[object]()

    def accept() -> None:
        meta = cluster.load()[0]
        try:
            outcomes.append(core.warden.accept(meta.timeline, meta.revision, no_entry, actor=""))
        except ShardholdError as exc:
            outcomes.append(exc)

    accepting = threading.Thread(target=accept)
    accepting.start()
    wait_until((tmp_path / "asked").exists)
    try:
        core.warden.seal(no_entry, seconds=0)
        assert (core.states[-1], core.failures, outcomes) == (State.SEALED, [], [])
    finally:
        (tmp_path / "go").touch()
        join(accepting, at_most(10))
    assert [type(outcome) for outcome in outcomes] == [UnavailableError]
    core.close()
    assert is_wiped(core.memory)
    assert cluster.load()[0].generation == 1


@pytest.mark.parametrize("is_early", [True, False], ids=["at the start", "while ready"])
def test_a_mark_of_the_next_generation_ends_ready(
    found: FoundCluster, start_nexus: StartNexus, wait_until: WaitUntil, is_early: bool
) -> None:
    """Whenever its keeper is heard."""
    cluster = found()
    keepers = cluster.keepers()
    keepers[4].remembers = sign_by_successor(cluster, revision=1)
    keepers[4].is_reachable = is_early
    core = start_nexus(keepers)
    if not is_early:
        wait_until(lambda: core.states == [State.READY])
        keepers[4].is_reachable = True
    wait_until(lambda: core.warden.find_newer_mark() is not None)
    wait_until(lambda: core.lifecycle.state is State.RECOVERING)
