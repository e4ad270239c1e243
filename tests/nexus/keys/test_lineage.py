"""The chain of generations among the control rows: what a root key is proved with after it followed another."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from common.errors import CorruptRowError, ShardholdError, WrongRootKeyError
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.keys.lineage import find_chain
from nexus.keys.manifest import row_digest
from nexus.keys.opened import prove
from nexus.store.protocol import ControlRow
from tests.nexus.cluster import FoundCluster, is_wiped
from tests.nexus.rotated import rotate, stage


def test_a_root_key_is_proved_beside_the_rows_of_the_next_generation(
    found: FoundCluster, memory: ProtectedMemory
) -> None:
    """What an operation stages is in nobody's way: the key of now opens its own rows."""
    cluster = found()
    stage(cluster)
    serving = cluster.prove()
    assert (serving.root_key.generation, serving.chain, serving.keyring.current_id) == (1, cluster.chain, 2)
    serving.release()
    assert is_wiped(memory)


def test_a_root_key_that_followed_another_is_proved(found: FoundCluster, memory: ProtectedMemory) -> None:
    """With the link that leads to it and every KEK, while the rows of the generation before are still there."""
    cluster = rotate(rotate(found()))
    serving = cluster.prove()
    assert (serving.root_key.generation, serving.chain.seq) == (3, 2)
    assert serving.chain == cluster.chain == find_chain(cluster.load()[1])
    assert serving.genesis.fingerprint == cluster.genesis
    assert serving.keyring.list_keks() == [2, 3, 4]
    assert serving.keyring.current_id == 4
    serving.release()
    assert is_wiped(memory)


def test_a_root_key_that_was_followed_is_refused(found: FoundCluster, memory: ProtectedMemory) -> None:
    """By the kcv of the generation of the current set."""
    first = found()
    rotate(first)
    with pytest.raises(WrongRootKeyError, match="generation 2"):
        first.prove()
    assert is_wiped(memory)


Rows = list[ControlRow]


def _drop(kind: str, name: str) -> Callable[[Rows], Rows]:
    return lambda rows: [row for row in rows if (row.kind, row.name) != (kind, name)]


def _swap_links(rows: Rows) -> Rows:
    first, second = (row.body for row in rows if row.kind == records.LINK)
    bodies = {("link", "1"): second, ("link", "2"): first}
    return [replace(row, body=bodies.get((row.kind, row.name), row.body)) for row in rows]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        pytest.param(_drop("link", "1"), "link/1 is missing", id="the first link removed"),
        pytest.param(_drop("link", "2"), "link/2 is missing", id="the last link removed"),
        pytest.param(_swap_links, "link/1 is missing", id="links swapped"),
        pytest.param(_drop("generation", "3"), "generation/3 is missing", id="the generation removed"),
        pytest.param(_drop("keyring", "3"), "keyring/3 does not verify", id="the keyring removed"),
    ],
)
def test_a_row_that_leads_to_the_key_has_to_be_there(
    found: FoundCluster, memory: ProtectedMemory, change: Callable[[Rows], Rows], why: str
) -> None:
    """The message names the row."""
    cluster = rotate(rotate(found()))
    meta, rows = cluster.load()
    with pytest.raises(CorruptRowError, match=why):
        prove(cluster.protect(cluster.root_key), cluster.points(), meta=meta, rows=change(rows), memory=cluster.memory)
    assert is_wiped(memory)


def test_rows_of_the_generation_before_are_not_needed(found: FoundCluster) -> None:
    """They go when the operation settles, or somebody takes them."""
    cluster = rotate(found())
    meta, rows = cluster.load()
    for key in [("keyring", "1"), ("escrow", "1"), ("generation", "1"), ("canary", "2"), ("shard-set", "1")]:
        rows = _drop(*key)(rows)
    prove(cluster.protect(cluster.root_key), [], meta=meta, rows=rows, memory=cluster.memory).release()


def test_a_link_that_the_manifest_does_not_list_counts_for_nothing(found: FoundCluster) -> None:
    """Whoever writes the database adds rows; the chain of before is proved all the same."""
    cluster = found()
    later = rotate(cluster)
    _, rows = later.load()
    meta, _ = cluster.load()
    link = next(row for row in rows if row.kind == records.LINK)
    body = link.body
    added = ControlRow("link", "2", body, row_digest(cluster.cluster_id, "link", "2", body))
    assert find_chain([*rows, added]) == later.chain
    prove(later.protect(later.root_key), [], meta=meta, rows=[*rows, added], memory=later.memory).release()


@pytest.mark.parametrize(
    ("put", "delete", "why"),
    [
        pytest.param({}, [("link", "1")], "leads to generation 1", id="no link to this generation"),
        pytest.param({("link", "2"): b"{}"}, [], "no LinkRecord", id="a link that is none"),
    ],
)
def test_a_chain_that_leads_elsewhere_is_refused_even_under_a_true_manifest(
    found: FoundCluster, put: dict[records.Key, bytes], delete: Sequence[records.Key], why: str
) -> None:
    """The proof is more than the manifest: the links have to lead from genesis to this very key."""
    cluster = rotate(found())
    serving = cluster.prove_without_points()
    cluster.store.write(
        lambda writer: manifest.change(writer, serving.root_key, serving.floor, put=put, delete=delete), alone=True
    )
    serving.release()
    with pytest.raises(ShardholdError, match=why):
        cluster.prove()
