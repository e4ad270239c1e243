"""Roles: what a caller is, by the form of its SPIFFE ID alone.

Rules:
- People have `ROLE` and `PERSON` as segments of their SPIFFE ID, where the configured pattern has them.
- A role allows calls about the cluster; secrets are a matter of policies for everybody.
- Every other ID of our trust domain is a workload, also one with a role that does not exist.
"""

import enum
import re
from dataclasses import dataclass

from common.errors import ConfigError, UnauthenticatedError

DEFAULT_PERSON_PATTERN = "/shardhold/pilot/role/ROLE/PERSON"
DEFAULT_NEXUS_PATTERN = "/shardhold/nexus/NAME"
DEFAULT_KEEPER_PATTERN = "/shardhold/keeper/NAME"

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


@dataclass(frozen=True, slots=True)
class Identity:
    """What a SPIFFE ID says."""

    role: Role
    name: str  # PERSON, or the name of a nexus or keeper; empty for a workload


class Roles:
    """The patterns of one trust domain. Immutable and thread-safe."""

    def __init__(
        self,
        trust_domain: str,
        *,
        pattern: str = DEFAULT_PERSON_PATTERN,
        nexus_pattern: str = DEFAULT_NEXUS_PATTERN,
        keeper_pattern: str = DEFAULT_KEEPER_PATTERN,
    ) -> None:
        """Compile the patterns.

        Raises:
            ConfigError: A pattern does not hold each of its words (ROLE and PERSON, or NAME) once, as a whole segment.
        """
        people = "|".join(sorted(PEOPLE))
        self._prefix = f"spiffe://{trust_domain}/"
        self._person = _compile("roles.pattern", pattern, {"ROLE": f"(?P<role>{people})", "PERSON": "(?P<name>[^/]+)"})
        self._nexus = _compile("roles.nexus_pattern", nexus_pattern, {"NAME": "(?P<name>[^/]+)"})
        self._keeper = _compile("roles.keeper_pattern", keeper_pattern, {"NAME": "(?P<name>[^/]+)"})

    def identify(self, spiffe_id: str) -> Identity:
        """Return role and name of *spiffe_id*.

        Raises:
            UnauthenticatedError: An ID of another trust domain.
        """
        if not spiffe_id.startswith(self._prefix):
            raise UnauthenticatedError(f"got {spiffe_id[:256]!r}, want an ID below {self._prefix}")
        path = spiffe_id[len(self._prefix) - 1 :]
        if (match := self._person.fullmatch(path)) is not None:
            return Identity(Role(match["role"]), match["name"])
        if (match := self._nexus.fullmatch(path)) is not None:
            return Identity(Role.NEXUS, match["name"])
        if (match := self._keeper.fullmatch(path)) is not None:
            return Identity(Role.KEEPER, match["name"])
        return Identity(Role.WORKLOAD, "")

    def role_of(self, spiffe_id: str) -> Role:
        """Return the role of *spiffe_id*.

        Raises:
            UnauthenticatedError: An ID of another trust domain.
        """
        return self.identify(spiffe_id).role

    def person_of(self, spiffe_id: str) -> str | None:
        """Return the PERSON of *spiffe_id*, or None when it is not a person's.

        Raises:
            UnauthenticatedError: An ID of another trust domain.
        """
        identity = self.identify(spiffe_id)
        return identity.name if identity.role in PEOPLE else None


def _compile(option: str, pattern: str, words: dict[str, str]) -> re.Pattern[str]:
    root, *segments = pattern.split("/")
    if root or not segments or any(_SEGMENT.fullmatch(segment) is None for segment in segments):
        raise ConfigError(f"{option}: got {pattern!r}, want a path of segments of [A-Za-z0-9._-] that begins with '/'")
    for word in words:
        if segments.count(word) != 1:
            raise ConfigError(f"{option}: got {pattern!r}, want {word} in it once, as a whole segment")
    return re.compile("".join("/" + words.get(segment, re.escape(segment)) for segment in segments))
