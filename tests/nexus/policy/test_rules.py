"""Policies: default deny, the table of who may do what, and the index against the definition of a glob."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CorruptRowError, InvalidArgumentError
from nexus.policy.globs import GlobIndex
from nexus.policy.rules import (
    Permission,
    Policy,
    PolicySet,
    check_policy,
    decode_policy,
    encode_policy,
    superuser_policy,
)
from tests.nexus.policy.glob_definition import GLOBS, PATHS, glob_matches

READ, WRITE, DELETE, LIST = Permission


def policy(name: str, spiffe_id: str, path: str, *permissions: Permission) -> Policy:
    return Policy(name=name, spiffe_ids=(spiffe_id,), paths=(path,), permissions=permissions or (READ,))


POLICIES = PolicySet(
    [
        policy("web-reads", "spiffe://example.org/team/web", "team/web/**", READ, LIST),
        policy("web-writes-own", "spiffe://example.org/team/web", "team/web/own", WRITE),
        policy("team-reads-shared", "spiffe://example.org/team/*", "shared/*", READ),
        policy("ci-deletes", "spiffe://example.org/ci/**", "**/tmp-*", DELETE),
        policy("partner", "spiffe://partner.example/team/web", "partner", READ),
        superuser_policy("example.org", "/shardhold/pilot/role/ROLE/PERSON"),
    ]
)


@pytest.mark.parametrize(
    ("caller", "permission", "path", "by"),
    [
        ("team/web", READ, "team/web/db", "web-reads"),
        ("team/web", READ, "team/web", "web-reads"),
        ("team/web", LIST, "team/web/db", "web-reads"),
        ("team/web", WRITE, "team/web/db", None),
        ("team/web", WRITE, "team/web/own", "web-writes-own"),
        ("team/web", DELETE, "team/web/own", None),
        ("team/web", READ, "shared/x", "team-reads-shared"),
        ("team/web", READ, "shared/x/y", None),
        ("team/web", READ, "partner", None),
        ("team/web2", READ, "team/web/db", None),
        ("team/web/sub", READ, "shared/x", None),
        ("ci", DELETE, "a/tmp-1", "ci-deletes"),
        ("ci/runner/7", DELETE, "tmp-1", "ci-deletes"),
        ("ci/runner/7", DELETE, "tmp-1/x", None),
        ("ci/runner/7", READ, "tmp-1", None),
        ("shardhold/pilot/role/superuser/alice", DELETE, "any/thing", "superusers"),
        ("shardhold/pilot/role/operator/alice", READ, "any/thing", None),
        ("shardhold/pilot/role/superuser/alice/x", READ, "any/thing", None),
        ("nobody", READ, "team/web/db", None),
    ],
)
def test_who_may_do_what(caller: str, permission: Permission, path: str, by: str | None) -> None:
    """Each line is allowed by the policy it names, or denied."""
    assert POLICIES.decide(f"spiffe://example.org/{caller}", permission, path) == by


@pytest.mark.parametrize(
    "caller",
    ["spiffe://other.example/team/web", "https://example.org/team/web", "team/web", "", "spiffe://example.org"],
)
def test_callers_of_elsewhere_are_denied(caller: str) -> None:
    """No form of a name but the whole SPIFFE ID is matched."""
    assert POLICIES.decide(caller, READ, "team/web/db") is None


def test_no_policy_denies() -> None:
    """Nothing is allowed when there is no policy."""
    assert PolicySet().decide("spiffe://example.org/team/web", READ, "a") is None


def test_first_name_is_given() -> None:
    """The first by name of two policies that allow is named, in whatever order they came."""
    both = [policy(name, "spiffe://example.org/**", "**") for name in ("b", "a")]
    assert PolicySet(both).decide("spiffe://example.org/x", READ, "p") == "a"


def changed(**changes: object) -> Policy:
    values: dict[str, object] = {
        "name": "p",
        "spiffe_ids": ("spiffe://example.org/a",),
        "paths": ("a",),
        "permissions": (READ,),
    }
    return Policy(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        pytest.param(changed(name="Big"), "policy name", id="name"),
        pytest.param(changed(name="x" * 65), "policy name", id="long name"),
        pytest.param(changed(spiffe_ids=()), "policy p: spiffe_ids: got 0", id="no SPIFFE ID"),
        pytest.param(changed(paths=("a",) * 65), "policy p: paths: got 65", id="65 paths"),
        pytest.param(changed(permissions=()), "permissions: got none", id="no permission"),
        pytest.param(changed(permissions=(READ, READ)), "got one twice", id="permission twice"),
        pytest.param(changed(spiffe_ids=("spiffe://*/a",)), r"spiffe_ids\[0\]: .*no star", id="star as trust domain"),
        pytest.param(changed(spiffe_ids=("example.org/a",)), "want spiffe://", id="no scheme"),
        pytest.param(changed(spiffe_ids=("spiffe://example.org",)), "want spiffe://", id="no path"),
        pytest.param(changed(spiffe_ids=("spiffe://example.org/a**",)), "whole segment", id="half a deep star"),
        pytest.param(changed(paths=("a", "/b")), r"paths\[1\]", id="path"),
        pytest.param(changed(paths=("shardhold/**",)), "is reserved", id="reserved path"),
    ],
)
def test_wrong_policy_is_named(wrong: Policy, named: str) -> None:
    """A wrong policy is refused by check, set and decoder, and what is wrong is named."""
    with pytest.raises(InvalidArgumentError, match=named):
        check_policy(wrong)
    with pytest.raises(InvalidArgumentError, match=named):
        PolicySet([wrong])
    with pytest.raises(CorruptRowError, match=named):
        decode_policy(encode_policy(wrong))


def test_set_refuses_a_name_twice() -> None:
    """Two policies of one name make no set."""
    with pytest.raises(InvalidArgumentError, match="policy p: got this name twice"):
        PolicySet([changed(), changed(paths=("b",))])


def test_row_round_trip() -> None:
    """A policy decodes from its row, and its row is always the same bytes."""
    for one in POLICIES.policies:
        assert decode_policy(encode_policy(one)) == one
    assert encode_policy(changed()) == (
        b'{"name":"p","spiffe_ids":["spiffe://example.org/a"],"paths":["a"],"permissions":["read"]}'
    )


@pytest.mark.parametrize(
    "row", [b"", b"{}", b"\xff", b'{"name":"p"}', b'{"name":1}', encode_policy(changed())[:-1] + b',"x":1}']
)
def test_corrupt_row_is_named_as_one(row: bytes) -> None:
    """A row that is no policy raises CorruptRowError."""
    with pytest.raises(CorruptRowError):
        decode_policy(row)


def test_superusers_follow_the_configured_pattern() -> None:
    """The first policy is about the IDs that the configured pattern gives superusers."""
    first = superuser_policy("td.example", "/people/PERSON/as/ROLE")
    assert first.spiffe_ids == ("spiffe://td.example/people/*/as/superuser",)
    assert set(first.permissions) == set(Permission)


@given(st.lists(GLOBS, min_size=1, max_size=8), PATHS, st.integers(min_value=-1, max_value=255))
@settings(deadline=None, max_examples=500)
def test_index_equals_single_globs(globs: list[str], path: str, wanted: int) -> None:
    """The index finds exactly the wanted rules whose glob matches by its definition."""
    index = GlobIndex()
    for rule, glob in enumerate(globs):
        index.add(glob.split("/"), rule)
    expected = sum(1 << rule for rule, glob in enumerate(globs) if glob_matches(glob, path))
    assert index.match(path.split("/"), wanted=wanted) == expected & wanted


@pytest.mark.parametrize(
    ("spiffe_id", "path", "caller", "asked"),
    [
        pytest.param("team-{}/*", "team-{}/**", "team-500/app", "team-500/db/main", id="one policy for each team"),
        pytest.param("**", "team-{}/**", "any/app", "team-500/db/main", id="all are about the caller"),
        pytest.param("**", "*/db-{}-*", "any/app", "x/db-500-main", id="all begin with a star"),
        pytest.param("**", "**", "any/app", "x/y/z", id="all allow everything"),
        pytest.param("**", "**/x-{}/**/y", "any/app", "a/b/c/x-500/d/e/y", id="all are deep"),
    ],
)
def test_decision_among_1000_policies(spiffe_id: str, path: str, caller: str, asked: str) -> None:
    """One policy among 1,000 decides; `make bench` says how fast."""
    policies = PolicySet(
        policy(f"p-{n:04}", "spiffe://example.org/" + spiffe_id.format(n), path.format(n)) for n in range(1000)
    )
    caller = "spiffe://example.org/" + caller
    assert policies.decide(caller, READ, asked) is not None
