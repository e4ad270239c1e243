"""Further sets of a founded cluster."""

from collections.abc import Sequence

from nexus.keepers.plan import list_members
from nexus.keys.shard_set import Member, ShardSet, draw_set
from tests.nexus.cluster import FoundedCluster
from tests.nexus.cluster import members as name_members


def draw_next(
    cluster: FoundedCluster,
    *,
    timeline: int = 1,
    set_number: int = 2,
    names: Sequence[str] = (),
    members: Sequence[Member] = (),
) -> ShardSet:
    """Draw another set of the same root key: for *members*, for those with *names*, or for the same keepers."""
    known = [member for member in name_members(9) if member.name in names]
    key = cluster.make_root_key()
    record, points = draw_set(
        key.view,
        members or known or list_members(cluster.record),
        threshold=cluster.record.threshold,
        generation=1,
        set_number=set_number,
        timeline=timeline,
        cluster_id=cluster.cluster_id,
        memory=cluster.memory,
    )
    key.release()
    return ShardSet(record, record.label(cluster.cluster_id, cluster.genesis), points)
