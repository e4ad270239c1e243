"""Unseal of a cluster whose root key followed another one: what custodians open is what the chain names."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ChainError, CorruptRowError
from common.keys.protected import ProtectedMemory
from nexus.keys import manifest, records
from nexus.lifecycle.states import State
from tests.nexus.cluster import FoundCluster, FoundedCluster, tamper
from tests.nexus.custodians import KEY, OTHER_KEY, Lost, custodian
from tests.nexus.rotated import rotate

ANN, BEN = custodian("ann"), custodian("ben")


@pytest.fixture
def cluster(found: FoundCluster) -> FoundedCluster:
    """With its second root key, for the same custodians."""
    first = found(recovery=KEY.record, seal_escrow=KEY.seal_escrow)
    return rotate(first, recovery=KEY.record, seal_escrow=KEY.seal_escrow)


def test_custodians_bring_back_the_root_key_of_now(
    cluster: FoundedCluster, tmp_path: Path, memory: ProtectedMemory
) -> None:
    """The one whose copy the last link names; they compare the genesis record as ever."""
    lost = Lost(tmp_path, cluster, memory)
    session = lost.core.unseal.start(ANN)
    assert session.genesis == cluster.genesis
    lost.submit(session, 1, ANN)
    assert lost.submit(session, 2, BEN).ready
    assert lost.core.lifecycle.state is State.READY
    assert lost.core.lifecycle.require_serving().root_key.view == cluster.root_key
    lost.core.close()


def _put(kind: str, name: str, body: bytes) -> Callable[[Path, FoundedCluster], None]:
    def put(folder: Path, cluster: FoundedCluster) -> None:
        digest = manifest.row_digest(cluster.cluster_id, kind, name, body)
        sql = "UPDATE control SET body = ?, digest = ? WHERE kind = ? AND name = ?"
        tamper(folder, sql, body, digest, kind, name)

    return put


def _put_escrow_of_before(folder: Path, cluster: FoundedCluster) -> None:
    escrow = next(row for row in cluster.load()[1] if (row.kind, row.name) == (records.ESCROW, "1"))
    _put(records.ESCROW, "2", escrow.body)(folder, cluster)


def _drop_link(folder: Path, cluster: FoundedCluster) -> None:
    tamper(folder, "DELETE FROM control WHERE kind = 'link'")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        pytest.param(_put_escrow_of_before, "escrow is not the one of link 1", id="the escrow of the key before"),
        pytest.param(
            _put("recovery-key", "current", records.encode(OTHER_KEY.record)),
            "recovery key is not the one of link 1",
            id="another recovery key",
        ),
        pytest.param(_drop_link, "link/1 is missing", id="no link"),
        pytest.param(_put("link", "1", b'{"record":"AAAA"}'), "link does not decode", id="a link that is none"),
    ],
)
def test_what_the_chain_does_not_name_is_refused_before_any_share(
    cluster: FoundedCluster,
    tmp_path: Path,
    memory: ProtectedMemory,
    spoil: Callable[[Path, FoundedCluster], None],
    why: str,
) -> None:
    """No custodian types a word for it."""
    lost = Lost(tmp_path, cluster, memory)
    spoil(tmp_path, cluster)
    with pytest.raises((CorruptRowError, ChainError), match=why):
        lost.core.unseal.start(ANN)
    lost.core.close()
