"""What a nexus checks of a request before it reads anything, in its words. All raise `InvalidArgumentError`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shardhold._errors import InvalidArgumentError
from shardhold.testing._refusals import conflict, invalid

MAX_PATH_BYTES = 512
MAX_SEGMENTS = 16
MAX_FIELDS = 64
MAX_BODY_BYTES = 1024 * 1024  # 1 MiB, once encoded
MAX_VERSIONS_NAMED = 100  # by one request
MAX_VERSION = 2**63 - 1
MAX_PAGE = 1000
HIGHEST_MAX_VERSIONS = 1_000_000
INCARNATION_SIZE = 16

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RESERVED_SEGMENT = "shardhold"


@dataclass(frozen=True, slots=True)
class Expected:
    """What a check-and-set wants to find; None: anything."""

    version: int | None  # 0: no secret
    incarnation: bytes  # empty: any

    def check(self, *, of_existing: str = "") -> None:
        """Check that the expectation makes sense; *of_existing*: what needs a secret, as "deleted"."""
        if self.incarnation and len(self.incarnation) != INCARNATION_SIZE:
            raise invalid(f"expected_incarnation: got {len(self.incarnation)} bytes, want {INCARNATION_SIZE} or none")
        if self.version == 0 and of_existing:
            raise invalid(f"expected_version: got 0, want 1 or more: what does not exist cannot be {of_existing}")
        if self.incarnation and not self.version:
            raise invalid("expected_incarnation: got one without expected_version, want both")

    def compare(self, path: str, version: int, incarnation: bytes) -> None:
        """Compare with the secret as it is; version 0: there is none.

        Raises:
            ConflictError: It is another version or incarnation.
        """
        if self.version is None:
            return
        if version != self.version:
            raise conflict(f"{path}: expected version {self.version}, current is {version}")
        if self.incarnation and incarnation != self.incarnation:
            raise conflict(
                f"{path}: expected version {version} of another incarnation, the secret was created anew since"
            )


def check_path(path: str, *, name: str = "path") -> None:
    """Check the path of a secret; *name* is the argument's name in errors."""
    if not path:
        raise invalid(f"{name}: got nothing, want 1 to {MAX_SEGMENTS} segments")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise invalid(f"{name}: got {len(path)} characters, want at most {MAX_PATH_BYTES} bytes")
    if path.startswith("/") or path.endswith("/"):
        raise invalid(f"{name}: got a '/' at an end, want none")
    segments = path.split("/")
    if len(segments) > MAX_SEGMENTS:
        raise invalid(f"{name}: got {len(segments)} segments, want at most {MAX_SEGMENTS}")
    for position, segment in enumerate(segments, start=1):
        if _SEGMENT.fullmatch(segment) is None or segment in (".", ".."):
            raise invalid(
                f"{name}: segment {position} is {_abbreviate(segment)}, "
                "want 1 to 128 of [A-Za-z0-9._-], not '.' or '..'"
            )
    if segments[0] == _RESERVED_SEGMENT:
        raise invalid(f"{name}: begins with '{_RESERVED_SEGMENT}', which is reserved")


def check_prefix(prefix: str) -> None:
    """Check the prefix of a list: empty, or as a path."""
    if prefix:
        check_path(prefix, name="prefix")


def check_fields(fields: Mapping[str, bytes]) -> None:
    """Check the fields of one version."""
    if not fields:
        raise invalid(f"fields: got none, want 1 to {MAX_FIELDS}")
    _check_some_fields(fields)


def check_patched(fields: Mapping[str, bytes]) -> None:
    """Check what a patch would leave; a refusal tells nothing of the fields that stay."""
    if not fields:
        raise invalid("removed_fields: no field would be left, want 1 or more")
    try:
        check_fields(fields)
    except InvalidArgumentError:
        raise invalid(
            f"fields: got too much together with the fields that stay, want at most {MAX_FIELDS}, and "
            f"{MAX_BODY_BYTES} bytes once encoded"
        ) from None


def check_patch(fields: Mapping[str, bytes], removed: Sequence[str]) -> None:
    """Check what a patch sets, and the names that it takes out."""
    if not fields and not removed:
        raise invalid("fields: got none, and none in removed_fields, want 1 or more in either")
    _check_some_fields(fields)
    if len(removed) > MAX_FIELDS:
        raise invalid(f"removed_fields: got {len(removed)}, want at most {MAX_FIELDS}")
    for name in removed:
        _check_name("removed_fields", name)
        if name in fields:
            raise invalid(f"removed_fields: got {_abbreviate(name)}, which is in fields as well")


def sort_versions(versions: Iterable[int]) -> list[int]:
    """Return the versions that a request names, checked and each once."""
    named = list(versions)
    if len(named) > MAX_VERSIONS_NAMED:
        raise invalid(f"versions: got {len(named)}, want at most {MAX_VERSIONS_NAMED}")
    for version in named:
        check_version("versions", version)
    return sorted(set(named))


def check_version(name: str, version: int) -> None:
    """Check one version."""
    if version > MAX_VERSION:
        raise invalid(f"{name}: got {version}, want at most {MAX_VERSION}")


def check_page_size(size: int) -> int:
    """Return how many items a page has at most."""
    if size > MAX_PAGE:
        raise invalid(f"page_size: got {size}, want at most {MAX_PAGE}")
    return size or MAX_PAGE


def check_max_versions(max_versions: int) -> None:
    """Check how many versions are to be kept."""
    if max_versions > HIGHEST_MAX_VERSIONS:
        raise invalid(f"max_versions: got {max_versions}, want at most {HIGHEST_MAX_VERSIONS}")


def _check_some_fields(fields: Mapping[str, bytes]) -> None:
    if len(fields) > MAX_FIELDS:
        raise invalid(f"fields: got {len(fields)}, want 1 to {MAX_FIELDS}")
    for name in fields:
        _check_name("fields", name)
    size = sum(8 + len(name) + len(value) for name, value in fields.items())
    if size > MAX_BODY_BYTES:
        raise invalid(f"fields: {size} bytes once encoded, want at most {MAX_BODY_BYTES}")


def _check_name(argument: str, name: str) -> None:
    if _FIELD_NAME.fullmatch(name) is None:
        raise invalid(f"{argument}: got the name {_abbreviate(name)}, want 1 to 64 of [A-Za-z0-9._-]")


def _abbreviate(text: str) -> str:
    return repr(text if len(text) <= 32 else text[:32] + "…")
