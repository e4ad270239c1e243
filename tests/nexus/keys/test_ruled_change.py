"""A change that a rule decides: refused whole, or committed whole with its entry and its manifest."""

from dataclasses import replace

import pytest

from common.errors import OperationRefusedError, StoreUnavailableError
from nexus.keys import records
from nexus.keys.opened import Serving, prove
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.refusal import Reason, Refused
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import commit_rule, load_facts, rehearse
from nexus.store.protocol import Store, Writer
from tests.nexus.cluster import FoundCluster, FoundedCluster
from tests.nexus.failing_store import FailingStore

KEY = (records.SHARD_SET, "9")


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    return found()


def add_dead_set(facts: Facts, _: int) -> Change:
    """Add a row, and raise the epoch."""
    dead = records.replace_state(facts.current_set, records.SetState.DEAD)
    return Change(facts.current, {KEY: records.encode(dead)})


def no_entry(writer: Writer, key: RootKey) -> None:
    """For a change that is not audited."""


def load(store: Store, serving: Serving) -> Facts:
    with store.read() as reader:
        return load_facts(reader, serving.root_key)


def test_a_change_is_committed_under_the_manifest(cluster: FoundedCluster) -> None:
    """The row verifies, the epoch is raised, and the floor follows after what the caller does with the commit."""
    serving = cluster.prove()
    before, seen = serving.floor.position, list[bool]()
    commit_rule(
        cluster.store, serving, add_dead_set, no_entry, on_commit=lambda: seen.append(serving.floor.position == before)
    )
    facts = load(cluster.store, serving)
    assert seen == [True]
    assert (KEY in facts.bodies, facts.damaged) == (True, frozenset())
    assert serving.floor.position == facts.meta.position
    assert facts.meta.epoch == before.epoch + 1
    serving.release()


def test_a_refusal_changes_nothing(cluster: FoundedCluster) -> None:
    """Its reason and its sentence come out, and no entry is written."""
    serving, before = cluster.prove(), cluster.load()

    def write_entry(writer: Writer, key: RootKey) -> None:
        pytest.fail("an entry of what did not happen")

    with pytest.raises(OperationRefusedError, match="not today") as refused:
        commit_rule(cluster.store, serving, lambda *_: Refused(Reason.SEALED, "not today"), write_entry)
    assert refused.value.reason == "SEALED"
    assert cluster.load() == before
    serving.release()


def test_an_empty_change_leaves_the_manifest_as_it_was(cluster: FoundedCluster) -> None:
    """Only the entry is written: it was asked for."""
    serving, (_, rows) = cluster.prove(), cluster.load()
    written = list[int]()
    commit_rule(
        cluster.store,
        serving,
        lambda facts, _: Change(facts.current, raises_epoch=False),
        lambda writer, _: written.append(writer.revision),
    )
    assert written == [cluster.load()[0].revision]
    assert cluster.load()[1] == rows
    serving.release()


def test_what_is_not_committed_is_not_followed(cluster: FoundedCluster) -> None:
    """Neither the floor nor the caller hears of it."""
    serving, failing = cluster.prove(), FailingStore(cluster.store)
    before, rows = serving.floor.position, cluster.load()
    failing.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        commit_rule(failing, serving, add_dead_set, no_entry, on_commit=lambda: pytest.fail("it is not committed"))
    assert (serving.floor.position, cluster.load()) == (before, rows)
    serving.release()


def test_the_rule_is_told_the_revision_that_its_change_has(cluster: FoundedCluster) -> None:
    """A link of the chain names it."""
    serving, told = cluster.prove(), list[int]()

    def rule(facts: Facts, revision: int) -> Change:
        told.append(revision)
        return add_dead_set(facts, revision)

    commit_rule(cluster.store, serving, rule, no_entry)
    assert told == [cluster.load()[0].revision]
    serving.release()


def test_a_rehearsed_change_proves_in_memory_and_is_not_stored(cluster: FoundedCluster) -> None:
    """Its rows are those that a restart would find after the commit, but for the revision."""
    serving, before = cluster.prove(), cluster.load()
    facts = load(cluster.store, serving)
    meta, rows = rehearse(facts, add_dead_set(facts, 0), serving.root_key)
    assert cluster.load() == before
    proved = prove(cluster.protect(cluster.root_key), cluster.points(), meta=meta, rows=rows, memory=cluster.memory)
    proved.release()
    commit_rule(cluster.store, serving, add_dead_set, no_entry)
    after, stored = cluster.load()
    assert replace(meta, revision=after.revision) == after
    assert sorted((row.kind, row.name, row.body) for row in rows if row.kind != "manifest") == sorted(
        (row.kind, row.name, row.body) for row in stored if row.kind != "manifest"
    )
    serving.release()
