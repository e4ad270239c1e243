"""Warnings about policies: globs over SPIFFE IDs that allow nobody anything."""

import pytest

from nexus.access.roles import Roles
from nexus.admin.policy_warnings import MAX_WARNINGS, find_warnings
from nexus.policy.rules import Permission, Policy

ROLES = Roles("example.org")
PEOPLE = "spiffe://example.org/shardhold/pilot/role"


def policy(name: str, *spiffe_ids: str) -> Policy:
    return Policy(name=name, spiffe_ids=spiffe_ids, paths=("team/**",), permissions=(Permission.READ,))


@pytest.mark.parametrize(
    ("glob", "why"),
    [
        ("spiffe://exmaple.org/team/app", "is of another trust domain than example.org: no caller has it"),
        ("spiffe://exmaple.org/**", "is of another trust domain than example.org: no caller has it"),
        (f"{PEOPLE}/operator/bob", "has the role operator: no policy counts for it"),
        (f"{PEOPLE}/auditor/*", "has the role auditor: no policy counts for it"),
        ("spiffe://example.org/shardhold/nexus/n*", "has the role nexus: no policy counts for it"),
        ("spiffe://example.org/shardhold/keeper/*", "has the role keeper: no policy counts for it"),
    ],
)
def test_a_glob_that_allows_nobody_anything_is_named(glob: str, why: str) -> None:
    """With the policy, and with the reason; the others of the policy are not."""
    assert find_warnings([policy("x", "spiffe://example.org/a", glob)], ROLES) == [f"policy x: {glob} {why}"]


@pytest.mark.parametrize(
    "glob",
    [
        "spiffe://example.org/team/app",
        "spiffe://example.org/**",
        "spiffe://example.org/shardhold/**",
        "spiffe://example.org/shardhold/nexus/**",  # `shardhold/nexus/a/b` is a workload
        f"{PEOPLE}/superuser/alice",
        f"{PEOPLE}/*/alice",  # a superuser among them
        f"{PEOPLE}/oper*/bob",  # `operations/bob` is a workload
        f"{PEOPLE}/operator/bob/laptop",
        "spiffe://example.org/*/nexus/n1",
    ],
)
def test_a_glob_that_may_allow_somebody_something_is_not(glob: str) -> None:
    """Nobody is to get used to warnings."""
    assert find_warnings([policy("x", glob)], ROLES) == []


def test_the_first_warnings_are_told_and_the_rest_counted() -> None:
    """An answer with all of them might be larger than a message."""
    policies = [policy(f"p{number}", *[f"spiffe://other.example/{at}" for at in range(64)]) for number in range(3)]
    warnings = find_warnings(policies, ROLES)
    assert len(warnings) == MAX_WARNINGS
    assert warnings[-1] == "and 93 more warnings"
    assert MAX_WARNINGS - 1 + 93 == 3 * 64
