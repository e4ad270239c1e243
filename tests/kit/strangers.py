"""Peers whom no server lets in, whatever else their certificates say: of each kind one."""

from collections.abc import Callable

import pytest

from tests.kit.authority import EXPIRED, NOT_YET, Authority
from tests.kit.credentials import Credentials, certify

# Makes the stranger from the server's authority and from the SPIFFE ID of somebody who would be let in.
MakeStranger = Callable[[Authority, str], Credentials | None]


def in_another_domain(ca: Authority, spiffe_id: str) -> str:
    return spiffe_id.replace(ca.trust_domain, "other.test")


def of_another_authority(trust_domain: str, spiffe_id: str, roots: Authority) -> Credentials:
    return certify(Authority(trust_domain), uris=[spiffe_id], roots=roots)


STRANGERS = [
    pytest.param(lambda ca, good: None, "UNAVAILABLE", id="no certificate: in the handshake"),
    pytest.param(
        lambda ca, good: of_another_authority(ca.trust_domain, good, ca),
        "UNAVAILABLE",
        id="other authority of the same name: in the handshake",
    ),
    pytest.param(
        lambda ca, good: of_another_authority("other.test", in_another_domain(ca, good), ca),
        "UNAVAILABLE",
        id="authority of another trust domain: in the handshake",
    ),
    pytest.param(
        lambda ca, good: certify(ca, uris=[good], valid=EXPIRED), "UNAVAILABLE", id="expired: in the handshake"
    ),
    pytest.param(
        lambda ca, good: certify(ca, uris=[good], valid=NOT_YET), "UNAVAILABLE", id="not yet valid: in the handshake"
    ),
    pytest.param(
        lambda ca, good: certify(ca, uris=[good, good + "x"]), "UNAUTHENTICATED", id="two URI SANs, the right one first"
    ),
    pytest.param(
        lambda ca, good: certify(ca, uris=[good + "x", good]), "UNAUTHENTICATED", id="two URI SANs, the right one last"
    ),
    pytest.param(
        lambda ca, good: certify(ca, dns=["nexus.shardhold"]),
        "UNAUTHENTICATED",
        id="a DNS SAN of ours without a SPIFFE ID",
    ),
    pytest.param(
        lambda ca, good: certify(ca, dns=[good]), "UNAUTHENTICATED", id="the right SPIFFE ID, but as a DNS SAN"
    ),
    pytest.param(
        lambda ca, good: certify(ca, uris=[in_another_domain(ca, good)]),
        "UNAUTHENTICATED",
        id="SPIFFE ID of another trust domain",
    ),
]
"""A `MakeStranger`, and the code that it gets."""
