"""What a reshare is asked to change."""

from dataclasses import replace

import pytest

from common.errors import InvalidArgumentError
from nexus.admin.operations.reshare_plan import ResharePlan, check_plan, choose_members
from nexus.keys.records import MemberRecord, SetState, ShardSetRecord
from nexus.keys.shard_set import Member

DOMAIN = "spiffe://example.org/"


def make_member(name: str) -> Member:
    return Member(name, f"{DOMAIN}shardhold/keeper/{name}", f"{name}.example.org:8443")


NEW = make_member("keeper-9")
CURRENT = ShardSetRecord(
    SetState.CURRENT,
    generation=1,
    set_id=bytes(16),
    set_number=1,
    timeline=1,
    threshold=3,
    members=tuple(
        MemberRecord(one.name, one.spiffe_id, one.address, x, bytes(32))
        for x, one in enumerate((make_member(f"keeper-{number}") for number in range(1, 6)), start=1)
    ),
)


def change(plan: ResharePlan) -> tuple[list[str], int]:
    check_plan(plan, lambda spiffe_id: spiffe_id.startswith(DOMAIN))
    members, threshold = choose_members(CURRENT, plan)
    return [member.name for member in members], threshold


@pytest.mark.parametrize(
    ("plan", "names", "threshold"),
    [
        pytest.param(ResharePlan(), "12345", 3, id="only new shards"),
        pytest.param(ResharePlan(threshold=5), "12345", 5, id="all are needed"),
        pytest.param(ResharePlan(threshold=2), "12345", 2, id="the lowest threshold"),
        pytest.param(ResharePlan(add=(NEW,)), "123459", 3, id="one joins"),
        pytest.param(ResharePlan(remove=("keeper-2",)), "1345", 3, id="one leaves"),
        pytest.param(ResharePlan(remove=("keeper-2",), lost=("keeper-2",)), "1345", 3, id="one is lost"),
        pytest.param(ResharePlan(add=(NEW,), remove=("keeper-1",)), "23459", 3, id="one takes the place of another"),
        pytest.param(
            ResharePlan(add=(replace(NEW, name="keeper-1"),), remove=("keeper-1",)), "23451", 3, id="of the same name"
        ),
        pytest.param(ResharePlan(threshold=3, remove=("keeper-1", "keeper-2")), "345", 3, id="down to the threshold"),
    ],
)
def test_members_of_the_new_set(plan: ResharePlan, names: str, threshold: int) -> None:
    """Those who stay in their order, then those who join."""
    assert change(plan) == ([f"keeper-{digit}" for digit in names], threshold)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        pytest.param(ResharePlan(threshold=6), "got 6 of 5", id="more than there are"),
        pytest.param(ResharePlan(threshold=1), "got 1 of 5", id="one alone"),
        pytest.param(ResharePlan(remove=("keeper-7",)), "'keeper-7', want one of keeper-1", id="nobody leaves"),
        pytest.param(ResharePlan(remove=("keeper-1",) * 2), "stands twice", id="leaves twice"),
        pytest.param(
            ResharePlan(remove=tuple(f"{number}" for number in range(256))), "remove: got 256 keepers", id="many leave"
        ),
        pytest.param(
            ResharePlan(lost=tuple(f"{number}" for number in range(256))), "lost: got 256 keepers", id="many are lost"
        ),
        pytest.param(ResharePlan(remove=("keeper-1\n",)), r"remove\[0\]", id="a name of two lines leaves"),
        pytest.param(ResharePlan(lost=("keeper-1",)), "want names that are removed", id="lost but not removed"),
        pytest.param(
            ResharePlan(remove=("keeper-1", "keeper-2", "keeper-3")), "got 3 of 2 keepers", id="too few are left"
        ),
        pytest.param(ResharePlan(add=(NEW, NEW)), "stands twice", id="joins twice"),
        pytest.param(ResharePlan(add=(make_member("keeper-1"),)), "'keeper-1' stands twice", id="is there already"),
        pytest.param(
            ResharePlan(add=(replace(NEW, address="keeper-1.example.org:8443"),)),
            "address",
            id="the address of another",
        ),
        pytest.param(
            ResharePlan(add=(replace(NEW, spiffe_id=f"{DOMAIN}shardhold/keeper/keeper-1"),)),
            "spiffe_id",
            id="the identity of another",
        ),
        pytest.param(ResharePlan(add=(replace(NEW, name="Keeper 9"),)), r"add\[0\].name", id="no DNS label"),
        pytest.param(ResharePlan(add=(replace(NEW, address="nowhere"),)), r"add\[0\].address", id="no port"),
        pytest.param(
            ResharePlan(add=(replace(NEW, spiffe_id="spiffe://other.org/x"),)), r"add\[0\].spiffe_id", id="a stranger"
        ),
        pytest.param(
            ResharePlan(add=tuple(make_member(f"more-{number}") for number in range(251))), "got 256", id="too many"
        ),
    ],
)
def test_what_does_not_fit_is_named(plan: ResharePlan, message: str) -> None:
    """The error says what it got and what is wanted."""
    with pytest.raises(InvalidArgumentError, match=message):
        change(plan)
