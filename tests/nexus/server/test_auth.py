"""Who a caller is, and whom the port for people lets in."""

import pytest

from common.errors import DeniedError, UnauthenticatedError
from nexus.access.roles import Role, Roles
from nexus.server.auth import Authenticator

PEOPLE = "spiffe://example.test/shardhold/pilot/role"


@pytest.mark.parametrize("role", ["superuser", "operator", "recover", "auditor"])
def test_people_are_let_in(role: str) -> None:
    """Every role of a person may call at the port for people."""
    Authenticator(Roles("example.test")).admit_person(f"{PEOPLE}/{role}/ann")


def test_the_nexus_itself_is_let_in() -> None:
    """`nexus health` asks at the port for people with the nexus's own identity."""
    Authenticator(Roles("example.test")).admit_person("spiffe://example.test/shardhold/nexus/n1")


@pytest.mark.parametrize(
    "path",
    ["/team/app", "/shardhold/keeper/k1", "/shardhold/pilot/role/king/ann", "/shardhold/pilot/role/superuser"],
)
def test_others_are_refused(path: str) -> None:
    """Workloads and keepers are denied; an ID that looks like a person's and is none is a workload's."""
    authenticator = Authenticator(Roles("example.test"))
    with pytest.raises(DeniedError, match="this port is for people"):
        authenticator.admit_person(f"spiffe://example.test{path}")


def test_another_trust_domain_is_nobody() -> None:
    """An ID of another trust domain is no caller at any port."""
    with pytest.raises(UnauthenticatedError):
        Authenticator(Roles("example.test")).admit_person(f"spiffe://other.test/{Role.WORKLOAD}")
