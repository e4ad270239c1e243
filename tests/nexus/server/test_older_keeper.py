"""A keeper of the release before, by the wire: what it does not know, the nexus does not ask of it."""

import hashlib

import pytest

from common.clock import SystemClock
from common.errors import KeeperTooOldError, WrongStateError
from common.forms.delivery import PUT_FORMAT, UNBOUND_FORMAT, SetLabel
from common.forms.epoch import StoreEpoch
from common.keys import shamir
from common.keys.protected import Level, ProtectedMemory
from nexus.server.keeper_link import GrpcKeeperLink
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.keepers import NEXUS_PATH
from tests.kit.patience import at_most
from tests.nexus.server.liar import KEEPER_PATH, OlderKeeper

pytestmark = pytest.mark.cluster

LABEL = SetLabel(cluster_id=b"c" * 16, genesis=b"g" * 32, timeline=1, generation=2, set_id=b"s" * 16, set_number=7)


def put(link: GrpcKeeperLink, memory: ProtectedMemory, current_set_id: bytes, put_format: int) -> None:
    """Give it a shard."""
    with memory.allocate(shamir.SHARD_SIZE) as shard:
        shard.view[:] = hashlib.sha256(LABEL.set_id).digest() + b"\3"
        commitment = shamir.commitment(shard.view, cluster_id=LABEL.cluster_id, set_id=LABEL.set_id)
        link.put_shard(
            LABEL,
            shard,
            commitment=commitment,
            current_set_id=current_set_id,
            epoch=StoreEpoch(1, 5),
            put_format=put_format,
            timeout=at_most(10),
        )


def test_it_is_filled_and_does_not_join() -> None:
    """It takes shards in the format that it knows; to join, it has to be upgraded, and nothing is sent to it."""
    ca, memory = Authority("example.test"), ProtectedMemory(lowest=Level.PLAIN)
    older = OlderKeeper(ca, memory)
    link = GrpcKeeperLink(
        name="k1",
        address=f"127.0.0.1:{older.port}",
        spiffe_id=f"spiffe://example.test{KEEPER_PATH}",
        identity=FixedIdentity(ca.issue(NEXUS_PATH)),
        clock=SystemClock(),
    )
    try:
        put_format = link.fetch_report(timeout=at_most(10)).put_format
        assert put_format == UNBOUND_FORMAT
        with pytest.raises(KeeperTooOldError, match="keeper k1 is too old .* upgrade it first"):
            put(link, memory, b"", put_format)
        assert not older.sealed
        put(link, memory, LABEL.set_id, put_format)
        report = link.fetch_report(timeout=at_most(10))
        assert [held.label for held in report.sets] == [LABEL]
        assert report.epoch == StoreEpoch(1, 5)
        with pytest.raises(WrongStateError, match="does not open"):
            put(link, memory, LABEL.set_id, PUT_FORMAT)
    finally:
        link.close()
        older.server.stop(0)
        memory.wipe()
