"""Which sets the keepers have to hold, and which of them they drop. Pure.

1. A keeper holds its shard of the current set and, while there is one, of the pending set; it is filled in this order.
2. It drops a set that the store says is dead (`droppable`). It also drops one of which the store knows nothing, if that
   is older than the current set or no newer than those given out: its row was forgotten, and a late delivery came. A
   newer one stays: this store may have been put back.
3. A set that is `kept` stays: one that a flip replaced until its operation is settled, and a pending one whose points
   this nexus has not brought back yet.
4. A keeper that is a member of neither set is leaving. It is given no shard; it drops its sets by the same rules.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from common.forms.delivery import SetLabel
from nexus.keys.records import MemberRecord, SetState, ShardSetRecord
from nexus.keys.shard_set import Member, ShardSet


@dataclass(frozen=True, slots=True)
class Holding:
    """The proof that a keeper holds its shard of one set."""

    boot_id: bytes  # 16 bytes, of the keeper's start in which it was given or shown
    proved_at: float  # seconds, monotonic


@dataclass(frozen=True, slots=True)
class Plan:
    """What the keepers have to do until there is another plan."""

    current: ShardSet
    pending: ShardSet | None = None
    droppable: frozenset[bytes] = frozenset()  # ids of sets that are dead
    kept: frozenset[bytes] = frozenset()  # ids of sets that stay for now (rule 3)
    newest: tuple[int, int] = (0, 0)  # timeline and number up to which sets without a row are dead; zeros: not known
    leaving: tuple[Member, ...] = ()  # members of other sets that may hold a shard yet

    @property
    def sets(self) -> tuple[ShardSet, ...]:
        """The sets to hold, in the order in which a keeper is filled."""
        return (self.current,) if self.pending is None else (self.current, self.pending)

    @property
    def set_ids(self) -> frozenset[bytes]:
        """Ids of these sets."""
        return frozenset(one.record.set_id for one in self.sets)

    def is_member(self, member: Member) -> bool:
        """Whether a keeper has a shard to hold; if not, it is leaving."""
        return any(find_record(one.record.members, member) is not None for one in self.sets)

    def list_members(self) -> tuple[Member, ...]:
        """Name every keeper that has something to do, each once; one that moves is where the newer set has it."""
        members: dict[tuple[str, str], Member] = {}
        for shard_set in self.sets:
            members |= {one.identity: one for one in list_members(shard_set.record)}
        left = (one for one in self.leaving if one.identity not in members)
        return (*members.values(), *left)

    def is_to_drop(self, label: SetLabel) -> bool:
        """Whether a keeper has to drop the set with *label* (rules 2 and 3)."""
        current = self.current.label
        if label.cluster_id != current.cluster_id or label.set_id in self.set_ids | self.kept:
            return False
        return label.set_id in self.droppable or label.order < current.order or label.order <= self.newest


def list_members(record: ShardSetRecord) -> list[Member]:
    """Name the keepers of a set."""
    return [Member(one.name, one.spiffe_id, one.address) for one in record.members]


def list_leaving(sets: Iterable[ShardSetRecord]) -> tuple[Member, ...]:
    """Name the keepers that may hold a shard of a set that is not current: members of newer sets first, each once."""
    others = sorted((one for one in sets if one.state is not SetState.CURRENT), key=lambda one: -one.set_number)
    found = (
        Member(member.name, member.spiffe_id, member.address)
        for one in others
        for member in one.members
        if member.name not in one.given_up
    )
    return tuple(dict.fromkeys(found))


def find_record(members: Iterable[MemberRecord], member: Member) -> MemberRecord | None:
    """Find *member* among those of a set, by name and SPIFFE ID; None when it is none of them."""
    return next((one for one in members if (one.name, one.spiffe_id) == member.identity), None)
