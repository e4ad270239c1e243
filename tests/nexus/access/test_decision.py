"""Whether policies let a caller do something, and why: the answer of `explain` is the one of the gate."""

import pytest

from common.errors import InvalidArgumentError
from nexus.access import calls
from nexus.access.decision import check_spiffe_id, explain, find_policy
from nexus.access.roles import Roles
from nexus.keys.opened import PolicyView
from nexus.policy.rules import Permission, Policy, PolicySet

ROLES = Roles("example.org")
APP = "spiffe://example.org/team/app"
ALICE = "spiffe://example.org/shardhold/pilot/role/superuser/alice"
BOB = "spiffe://example.org/shardhold/pilot/role/operator/bob"
KEEPER = "spiffe://example.org/shardhold/keeper/k1"
NEXUS = "spiffe://example.org/shardhold/nexus/n1"
FOREIGN = "spiffe://exmaple.org/team/app"
NOBODY = "spiffe://example.org/nobody"
READ, WRITE, DELETE, LIST = Permission


def policy(name: str, spiffe_id: str, *permissions: Permission, path: str = "team/**") -> Policy:
    return Policy(name=name, spiffe_ids=(spiffe_id,), paths=(path,), permissions=permissions)


POLICIES = PolicySet(
    [
        policy("b", APP, READ, LIST),
        policy("a", "spiffe://example.org/team/*", READ),
        policy("own", APP, WRITE, path="team/app"),
        policy("all", "spiffe://example.org/shardhold/**", *Permission, path="**"),
        policy("foreign", FOREIGN, *Permission),
    ]
)
VIEW = PolicyView(POLICIES, (), 1)


@pytest.mark.parametrize(
    ("spiffe_id", "permission", "path", "policies", "why"),
    [
        pytest.param(APP, READ, "team/x", ("a", "b"), "allowed by policies a, b", id="two allow it"),
        pytest.param(APP, WRITE, "team/app", ("own",), "allowed by policy own", id="one allows it"),
        pytest.param(ALICE, DELETE, "x", ("all",), "allowed by policy all", id="a superuser by a policy"),
        pytest.param(
            APP,
            READ,
            "elsewhere",
            (),
            f"no policy allows it: {APP} has read only on other paths, by policies a, b",
            id="another path",
        ),
        pytest.param(
            APP,
            DELETE,
            "team/x",
            (),
            f"no policy allows it: {APP} has other permissions than delete, by policies a, b, own",
            id="another permission",
        ),
        pytest.param(NOBODY, READ, "team/x", (), f"no policy is about {NOBODY}", id="nobody"),
        pytest.param(
            BOB, READ, "x", (), "no policy counts for the role operator: it has no access to secrets", id="an operator"
        ),
        pytest.param(
            NEXUS, READ, "x", (), "no policy counts for the role nexus: it has no access to secrets", id="a nexus"
        ),
        pytest.param(
            KEEPER, LIST, "x", (), "no policy counts for the role keeper: it has no access to secrets", id="a keeper"
        ),
        pytest.param(
            FOREIGN,
            READ,
            "team/x",
            (),
            f"{FOREIGN} is of another trust domain than example.org: it cannot call",
            id="another trust domain",
        ),
    ],
)
def test_the_answer_says_why(
    spiffe_id: str, permission: Permission, path: str, policies: tuple[str, ...], why: str
) -> None:
    """All policies that allow it are named, or what is missing."""
    explained = explain(ROLES, spiffe_id, permission, path, VIEW)
    assert (explained.policies, explained.sentence) == (policies, why)


def test_with_a_damaged_policy_nobody_is_authorised() -> None:
    """The damaged ones are named, even to whoever another policy would allow it."""
    for spiffe_id in (APP, ALICE, NOBODY):
        explained = explain(ROLES, spiffe_id, READ, "team/x", PolicyView(POLICIES, ("own", "No Name"), 1))
        assert explained.policies == ()
        assert explained.sentence == (
            "no policy counts while one is damaged, changed outside Shardhold: policies own, No Name"
        )


def test_a_sentence_names_a_few_policies() -> None:
    """However many there are, all are in the list."""
    many = PolicySet([policy(f"p{number:03}", APP, READ) for number in range(100)])
    explained = explain(ROLES, APP, READ, "team/x", PolicyView(many, (), 1))
    assert len(explained.policies) == 100
    assert explained.sentence.endswith("p006, p007 and 92 more")


@pytest.mark.parametrize("rpc", [rpc for rpc in calls.ALL if rpc.permission], ids=lambda rpc: rpc.name)
@pytest.mark.parametrize("spiffe_id", [APP, ALICE, BOB, KEEPER, NEXUS, NOBODY])
@pytest.mark.parametrize("path", ["team/x", "team/app", "elsewhere"])
def test_every_call_on_a_secret_is_decided_as_it_is_explained(
    rpc: calls.Rpc[Permission], spiffe_id: str, path: str
) -> None:
    """No RPC has roles of its own that an explanation of its permission would not know of."""
    explained = explain(ROLES, spiffe_id, rpc.permission, path, VIEW)
    decided = find_policy(rpc, spiffe_id, ROLES.role_of(spiffe_id), path, VIEW)
    assert decided == next(iter(explained.policies), None)


@pytest.mark.parametrize(
    "spiffe_id",
    ["", "alice", "spiffe://example.org", "spiffe://example.org/", "spiffe://example.org/team/*", "x" * 3000],
)
def test_what_nobody_can_have_as_an_id_is_refused(spiffe_id: str) -> None:
    """A glob, above all: the answer would be about another name."""
    with pytest.raises(InvalidArgumentError, match="spiffe_id: got"):
        check_spiffe_id(spiffe_id)
