"""Roles by the form of a SPIFFE ID."""

import pytest

from common.errors import ConfigError, UnauthenticatedError
from nexus.access.roles import Role, Roles

ROLES = Roles("example.org")


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/shardhold/pilot/role/superuser/alice", Role.SUPERUSER),
        ("/shardhold/pilot/role/operator/bob", Role.OPERATOR),
        ("/shardhold/pilot/role/recover/carol", Role.RECOVER),
        ("/shardhold/pilot/role/auditor/dan", Role.AUDITOR),
        ("/shardhold/nexus/n1", Role.NEXUS),
        ("/shardhold/keeper/keeper-1", Role.KEEPER),
        ("/shardhold/pilot/role/king/alice", Role.WORKLOAD),
        ("/shardhold/pilot/role/workload/alice", Role.WORKLOAD),
        ("/shardhold/pilot/role/nexus/alice", Role.WORKLOAD),
        ("/shardhold/pilot/role/superuser", Role.WORKLOAD),
        ("/shardhold/pilot/role/superuser/alice/laptop", Role.WORKLOAD),
        ("/x/shardhold/pilot/role/superuser/alice", Role.WORKLOAD),
        ("/shardhold/nexus/n1/x", Role.WORKLOAD),
        ("/team/web", Role.WORKLOAD),
    ],
)
def test_role(path: str, role: Role) -> None:
    """Each ID has this role."""
    assert ROLES.role_of("spiffe://example.org" + path) is role


@pytest.mark.parametrize(
    "spiffe_id",
    [
        "spiffe://example.com/shardhold/pilot/role/superuser/alice",
        "spiffe://example.org.evil/shardhold/pilot/role/superuser/alice",
        "spiffe://example.org",
        "/shardhold/pilot/role/superuser/alice",
        "",
    ],
)
def test_other_trust_domains_have_no_role(spiffe_id: str) -> None:
    """An ID that is not below our trust domain is no caller at all."""
    with pytest.raises(UnauthenticatedError):
        ROLES.role_of(spiffe_id)


def test_configured_pattern() -> None:
    """The pattern of people is configuration; dots in it are dots."""
    roles = Roles("example.org", pattern="/people.v1/PERSON/as/ROLE")
    assert roles.role_of("spiffe://example.org/people.v1/alice/as/auditor") is Role.AUDITOR
    assert roles.role_of("spiffe://example.org/peopleXv1/alice/as/auditor") is Role.WORKLOAD
    assert roles.role_of("spiffe://example.org/shardhold/pilot/role/superuser/alice") is Role.WORKLOAD


@pytest.mark.parametrize(
    "pattern",
    [
        "",
        "/",
        "x/ROLE/PERSON",
        "/ROLE",
        "/PERSON",
        "/ROLE/ROLE/PERSON",
        "/aROLE/PERSON",
        "/ROLE/PERSON/",
        "/ROLE//PERSON",
        "/ROLE/*/PERSON",
    ],
)
def test_wrong_pattern_is_named(pattern: str) -> None:
    """A pattern without its words is a configuration error that names the option."""
    with pytest.raises(ConfigError, match=r"^roles\.pattern: "):
        Roles("example.org", pattern=pattern)


@pytest.mark.parametrize(
    ("spiffe_id", "may"),
    [
        pytest.param("spiffe://example.org/shardhold/keeper/keeper-1", True, id="a keeper"),
        pytest.param("spiffe://example.org/team/keepers/one", True, id="a keeper by the configuration"),
        pytest.param("spiffe://example.org/shardhold/pilot/role/operator/bob", False, id="who asks for it"),
        pytest.param("spiffe://example.org/shardhold/pilot/role/recover/carol", False, id="a custodian"),
        pytest.param("spiffe://example.org/shardhold/nexus/n1", False, id="a nexus"),
        pytest.param("spiffe://example.com/shardhold/keeper/keeper-1", False, id="a stranger"),
        pytest.param("spiffe://example.org/../keeper", False, id="no SPIFFE ID"),
    ],
)
def test_who_may_be_a_keeper(spiffe_id: str, may: bool) -> None:
    """Nobody is given a shard under the ID by which they ask for it, or by which they serve."""
    assert ROLES.may_hold_shards(spiffe_id) is may
