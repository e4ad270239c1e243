"""Policies: rules that allow callers, by SPIFFE-ID globs, to do something with secrets, by path globs.

Rules:
- What no policy allows is denied. No policy denies anything.
- The trust domain of a SPIFFE-ID glob is literal; its path segments are a glob as in `nexus.policy.paths`.
- A `PolicySet` never changes; applying a policy makes a new one.
"""

import bisect
import enum
import functools
import re
from collections.abc import Iterable, Iterator

import msgspec

from common.errors import CorruptRowError, InvalidArgumentError
from common.forms.documents import decode_document
from nexus.policy.globs import GlobIndex, Range, find_ranges
from nexus.policy.paths import split_glob

MAX_GLOBS = 64
# Callers whose policies are remembered. Each takes the memory of its SPIFFE ID and one bit for each policy.
REMEMBERED_CALLERS = 4096
_REMEMBERED_RANGES = 64  # of callers with the same policies

_NAME = re.compile(r"[a-z0-9-]{1,64}")
_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}")


class Permission(enum.StrEnum):
    """What a policy may allow."""

    READ = "read"
    WRITE = "write"
    DELETE = "delete"
    LIST = "list"


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One policy: callers that one of *spiffe_ids* matches may do all of *permissions* where one of *paths* matches."""

    name: str  # [a-z0-9-]{1,64}
    spiffe_ids: tuple[str, ...]  # 1 to 64 globs over whole SPIFFE IDs
    paths: tuple[str, ...]  # 1 to 64 globs over paths
    permissions: tuple[Permission, ...]  # at least one, none twice


_DECODER = msgspec.json.Decoder(Policy)


def check_policy(policy: Policy) -> None:
    """Check every field of a policy.

    Raises:
        InvalidArgumentError: The message names policy, field and limit.
    """
    check_policy_name(policy.name)
    name = f"policy {policy.name}"
    for field, values in (("spiffe_ids", policy.spiffe_ids), ("paths", policy.paths)):
        if not 1 <= len(values) <= MAX_GLOBS:
            raise InvalidArgumentError(f"{name}: {field}: got {len(values)}, want 1 to {MAX_GLOBS}")
    for index, glob in enumerate(policy.spiffe_ids):
        split_spiffe_glob(glob, name=f"{name}: spiffe_ids[{index}]")
    for index, glob in enumerate(policy.paths):
        split_glob(glob, name=f"{name}: paths[{index}]")
    if not policy.permissions:
        raise InvalidArgumentError(f"{name}: permissions: got none, want at least one of {', '.join(Permission)}")
    if len(set(policy.permissions)) != len(policy.permissions):
        raise InvalidArgumentError(f"{name}: permissions: got one twice, want each once")


def check_policy_name(name: str, *, what: str = "policy name") -> None:
    """Check the name of a policy, which came as *what*.

    Raises:
        InvalidArgumentError: Not ``[a-z0-9-]{1,64}``.
    """
    if _NAME.fullmatch(name) is None:
        raise InvalidArgumentError(f"{what}: got {name[:65]!r}, want 1 to 64 of [a-z0-9-]")


def split_spiffe_glob(glob: str, *, name: str = "spiffe_id") -> tuple[str, ...]:
    """Check a glob over SPIFFE IDs and split it into trust domain and path segments.

    Raises:
        InvalidArgumentError: Not ``spiffe://TRUST-DOMAIN/…`` with a literal trust domain and a glob as path.
    """
    trust_domain, slash, path = glob.removeprefix(_SCHEME).partition("/")
    if not glob.startswith(_SCHEME) or not slash:
        raise InvalidArgumentError(f"{name}: got {glob[:64]!r}, want spiffe://TRUST-DOMAIN/PATH")
    if _TRUST_DOMAIN.fullmatch(trust_domain) is None:
        raise InvalidArgumentError(f"{name}: got the trust domain {trust_domain[:64]!r}, want [a-z0-9._-] and no star")
    return (trust_domain, *split_glob(path, name=name, is_path=False))


def encode_policy(policy: Policy) -> bytes:
    """Encode a policy as the body of its control row: JSON, fields in fixed order."""
    return msgspec.json.encode(policy)


def decode_policy(body: bytes) -> Policy:
    """Decode and check the body of a policy's control row.

    Raises:
        CorruptRowError: Not a policy.
    """
    policy = decode_document(_DECODER.decode, body, refusal="the row of a policy does not decode")
    try:
        check_policy(policy)
    except InvalidArgumentError as exc:
        raise CorruptRowError(f"the row of a policy does not decode: {exc}") from exc
    return policy


def superuser_policy(trust_domain: str, pattern: str) -> Policy:
    """Make the policy that init writes first: superusers may do everything. It is listed and deleted like any other.

    *pattern* is the path of people's SPIFFE IDs with the segments ROLE and PERSON, as in `nexus.access.roles`.
    """
    path = "/".join({"ROLE": "superuser", "PERSON": "*"}.get(segment, segment) for segment in pattern.split("/"))
    policy = Policy(
        name="superusers",
        spiffe_ids=(f"{_SCHEME}{trust_domain}{path}",),
        paths=("**",),
        permissions=tuple(Permission),
    )
    check_policy(policy)
    return policy


class PolicySet:
    """All policies, compiled for decisions. Immutable and thread-safe.

    One index over SPIFFE-ID globs tells which policies are about a caller, and one for each permission which of them
    allow a path. Policies are bits, so a decision is one walk and one AND, however many there are.
    """

    def __init__(self, policies: Iterable[Policy] = ()) -> None:
        """Compile *policies*.

        Raises:
            InvalidArgumentError: A policy is wrong, or two have one name.
        """
        self.policies = tuple(sorted(policies, key=lambda policy: policy.name))
        self._callers = GlobIndex()
        self._paths = {permission: GlobIndex() for permission in Permission}
        self._granting = dict.fromkeys(Permission, 0)  # policies with the permission, as bits
        for number, policy in enumerate(self.policies):
            check_policy(policy)
            if number and self.policies[number - 1].name == policy.name:
                raise InvalidArgumentError(f"policy {policy.name}: got this name twice, want each once")
            for glob in policy.spiffe_ids:
                self._callers.add(split_spiffe_glob(glob), number)
            for permission in policy.permissions:
                self._granting[permission] |= 1 << number
                for glob in policy.paths:
                    self._paths[permission].add(split_glob(glob), number)
        self._find_about = functools.lru_cache(maxsize=REMEMBERED_CALLERS)(self._match_caller)
        self._find_ranges = functools.lru_cache(maxsize=_REMEMBERED_RANGES)(self._list_ranges)

    def decide(self, caller: str, permission: Permission, path: str) -> str | None:
        """Return the name of a policy that allows it (the first by name), or None: denied.

        *caller* is a SPIFFE ID and *path* a checked path.
        """
        about = self._find_about(caller)
        if not about:
            return None
        allowing = self._paths[permission].match(path.split("/"), wanted=about)
        if not allowing:
            return None
        return self.policies[(allowing & -allowing).bit_length() - 1].name

    def find(self, name: str) -> Policy | None:
        """Return the policy of that name."""
        at = bisect.bisect_left(self.policies, name, key=lambda policy: policy.name)
        return self.policies[at] if at < len(self.policies) and self.policies[at].name == name else None

    def list_allowing(self, caller: str, permission: Permission, path: str) -> list[str]:
        """Return the names of all policies that allow it, sorted; none exactly when `decide` returns None."""
        return self._name(self._paths[permission].match(path.split("/"), wanted=self._find_about(caller)))

    def list_giving(self, caller: str, permission: Permission) -> list[str]:
        """Return the names of the policies that give *caller* the permission on any path, sorted."""
        return self._name(self._find_about(caller) & self._granting[permission])

    def list_about(self, caller: str) -> list[str]:
        """Return the names of the policies that give *caller* anything, sorted."""
        return self._name(self._find_about(caller))

    def allows_somewhere(self, caller: str, permission: Permission) -> bool:
        """Say whether a policy gives *caller* the permission on any path."""
        return bool(self._find_about(caller) & self._granting[permission])

    def find_ranges(self, caller: str, permission: Permission) -> tuple[Range, ...]:
        """Return ranges, ascending and apart, of the paths on which *caller* may have the permission."""
        return self._find_ranges(self._find_about(caller) & self._granting[permission])

    def _choose(self, numbers: int) -> Iterator[Policy]:
        return (policy for number, policy in enumerate(self.policies) if numbers >> number & 1)

    def _name(self, numbers: int) -> list[str]:
        return [policy.name for policy in self._choose(numbers)]

    def _list_ranges(self, numbers: int) -> tuple[Range, ...]:
        return find_ranges(split_glob(glob) for policy in self._choose(numbers) for glob in policy.paths)

    def _match_caller(self, caller: str) -> int:
        if not caller.startswith(_SCHEME):
            return 0
        return self._callers.match(caller.removeprefix(_SCHEME).split("/"))
