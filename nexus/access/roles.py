"""Roles: what a caller is, by the form of its SPIFFE ID alone.

Rules:
- People have `ROLE` and `PERSON` as segments of their SPIFFE ID, where the configured pattern has them.
- A role allows calls about the cluster; whoever wants a secret needs a policy.
- Every other ID of our trust domain is a workload, even one that names a role that does not exist.
"""

import enum
import re

from common.errors import ConfigError, UnauthenticatedError
from common.server.peer import is_member

DEFAULT_PERSON_PATTERN = "/shardhold/pilot/role/ROLE/PERSON"

_NEXUS = re.compile(r"/shardhold/nexus/[^/]+")
_KEEPER = re.compile(r"/shardhold/keeper/[^/]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")


class Role(enum.StrEnum):
    """What a caller is."""

    SUPERUSER = "superuser"  # writes policies, initialises
    OPERATOR = "operator"  # runs the cluster; reads no secret
    RECOVER = "recover"  # submits recovery shares
    AUDITOR = "auditor"  # reads status and audit
    NEXUS = "nexus"
    KEEPER = "keeper"
    WORKLOAD = "workload"  # what policies say and nothing more


# Roles that a person can have.
PEOPLE = frozenset({Role.SUPERUSER, Role.OPERATOR, Role.RECOVER, Role.AUDITOR})


class Roles:
    """The patterns of one trust domain. Immutable and thread-safe."""

    def __init__(self, trust_domain: str, *, pattern: str = DEFAULT_PERSON_PATTERN) -> None:
        """Compile *pattern*, the path of people's SPIFFE IDs.

        Raises:
            ConfigError: The pattern does not hold ROLE and PERSON once each, as a whole segment.
        """
        self.trust_domain = trust_domain
        self._prefix = f"spiffe://{trust_domain}/"
        self._person = _compile(pattern)

    def role_of(self, spiffe_id: str) -> Role:
        """Return the role of *spiffe_id*.

        Raises:
            UnauthenticatedError: An ID of another trust domain.
        """
        if not spiffe_id.startswith(self._prefix):
            raise UnauthenticatedError(f"got {spiffe_id[:256]!r}, want an ID below {self._prefix}")
        path = spiffe_id[len(self._prefix) - 1 :]
        if (match := self._person.fullmatch(path)) is not None:
            return Role(match["role"])
        if _NEXUS.fullmatch(path) is not None:
            return Role.NEXUS
        if _KEEPER.fullmatch(path) is not None:
            return Role.KEEPER
        return Role.WORKLOAD

    def may_hold_shards(self, spiffe_id: str) -> bool:
        """Whether a keeper may have *spiffe_id*: an operator reads no secret, and is no keeper under their own ID."""
        return is_member(spiffe_id, self.trust_domain) and self.role_of(spiffe_id) in (Role.KEEPER, Role.WORKLOAD)


def _compile(pattern: str) -> re.Pattern[str]:
    root, *segments = pattern.split("/")
    if root or not segments or any(_SEGMENT.fullmatch(segment) is None for segment in segments):
        raise ConfigError(
            f"roles.pattern: got {pattern!r}, want a path of segments of [A-Za-z0-9._-] that begins with '/'"
        )
    words = {"ROLE": f"(?P<role>{'|'.join(sorted(PEOPLE))})", "PERSON": "[^/]+"}
    for word in words:
        if segments.count(word) != 1:
            raise ConfigError(f"roles.pattern: got {pattern!r}, want {word} in it once, as a whole segment")
    return re.compile("".join("/" + words.get(segment, re.escape(segment)) for segment in segments))
