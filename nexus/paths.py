"""Paths of secrets, their fields, and the globs over both paths and SPIFFE IDs.

Rules:
- A path is 1 to 16 segments of ``[A-Za-z0-9._-]{1,128}`` joined by ``/``, none ``.`` or ``..``, at most 512 bytes,
  case-sensitive.
- What begins with ``shardhold/`` is nobody's, and neither is ``shardhold``.
- A glob is anchored at both ends. ``*`` matches any characters, also none, inside one segment and may be a part of one
  (``db-*``); ``**`` stands only as a whole segment and matches any number of segments, also none: ``team/**`` matches
  ``team``, ``team/a`` and ``team/a/b``, exactly what listing the prefix ``team`` shows.
"""

import re
from collections.abc import Mapping

from common.codec import fields as encode_parts
from common.codec import parse_fields
from common.errors import CorruptRowError, InvalidArgumentError

MAX_PATH_BYTES = 512
MAX_SEGMENTS = 16
MAX_FIELDS = 64
MAX_BODY_BYTES = 1024 * 1024  # 1 MiB, once encoded

# First segment of everything that is Shardhold's own.
RESERVED_SEGMENT = "shardhold"

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_GLOB_SEGMENT = re.compile(r"[A-Za-z0-9._*-]{1,128}")
_FIELD_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
# One pass over an ordinary path; everything else is looked at again to say what is wrong with it.
_PATH = re.compile(r"[A-Za-z0-9._-]{1,128}(?:/[A-Za-z0-9._-]{1,128}){0,15}")
_DOTS = (".", "..")


def check_path(path: str, *, name: str = "path") -> None:
    """Check the path of a secret that a caller named; *name* is the argument's name in errors.

    Raises:
        InvalidArgumentError: The path breaks a rule; the message names the rule.
    """
    if (
        _PATH.fullmatch(path) is None
        or len(path) > MAX_PATH_BYTES
        or path.startswith(RESERVED_SEGMENT)
        or "/." in path
        or path[0] == "."
    ):
        _check_segments(path, name=name, segment_pattern=_SEGMENT)


def check_prefix(prefix: str, *, name: str = "prefix") -> None:
    """Check the prefix of a listing: empty, or whole segments as in a path.

    Raises:
        InvalidArgumentError: The prefix breaks a rule of paths.
    """
    if prefix:
        check_path(prefix, name=name)


def check_fields(fields: Mapping[str, bytes]) -> None:
    """Check the fields of one secret version.

    Raises:
        InvalidArgumentError: No field or more than 64, a wrong name, or more than 1 MiB once encoded.
    """
    if not fields:
        raise InvalidArgumentError(f"fields: got none, want 1 to {MAX_FIELDS}")
    if len(fields) > MAX_FIELDS:
        raise InvalidArgumentError(f"fields: got {len(fields)}, want 1 to {MAX_FIELDS}")
    size = 0
    for name, value in fields.items():
        if _FIELD_NAME.fullmatch(name) is None:
            raise InvalidArgumentError(f"fields: got the name {_shown(name)}, want 1 to 64 of [A-Za-z0-9._-]")
        size += 4 + len(name) + 4 + len(value)
    if size > MAX_BODY_BYTES:
        raise InvalidArgumentError(f"fields: {size} bytes once encoded, want at most {MAX_BODY_BYTES}")


def encode_body(fields: Mapping[str, bytes]) -> bytes:
    """Encode checked fields as the body of a secret: the codec over name and value of each, sorted by name."""
    return encode_parts(*(part for name in sorted(fields) for part in (name.encode("ascii"), fields[name])))


def decode_body(body: bytes | memoryview) -> dict[str, bytes]:
    """Decode what `encode_body` encoded, and nothing else: one body has one form.

    Raises:
        CorruptRowError: Not pairs, names out of order or twice, or a wrong name.
    """
    parts = parse_fields(body)
    if len(parts) % 2:
        raise CorruptRowError(f"secret body has {len(parts)} parts, want pairs of name and value")
    fields: dict[str, bytes] = {}
    last = ""
    for raw_name, value in zip(parts[::2], parts[1::2], strict=True):
        name = raw_name.decode("ascii", "replace")
        if _FIELD_NAME.fullmatch(name) is None or name <= last:
            raise CorruptRowError(f"field {len(fields) + 1} of a secret body has a wrong name, or stands out of order")
        fields[name] = value
        last = name
    return fields


class Glob:
    """One compiled glob over paths. Matching takes time linear in the path for each star, whatever the glob."""

    __slots__ = ("_match", "pattern", "segments")

    def __init__(self, pattern: str, *, name: str = "glob") -> None:
        """Compile *pattern*; *name* is the argument's name in errors.

        Raises:
            InvalidArgumentError: The glob breaks a rule of paths, or ``**`` is only a part of a segment.
        """
        self.segments = split_glob(pattern, name=name)
        self.pattern = pattern
        self._match = re.compile(_regex(self.segments)).fullmatch

    def matches(self, path: str) -> bool:
        """Say whether the whole *path* matches."""
        return self._match(path + "/") is not None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Glob) and other.pattern == self.pattern

    def __hash__(self) -> int:
        return hash(self.pattern)

    def __repr__(self) -> str:
        return f"Glob({self.pattern!r})"


def split_glob(pattern: str, *, name: str = "glob", is_path: bool = True) -> tuple[str, ...]:
    """Check a glob and split it into its segments; *name* is the argument's name in errors.

    *is_path* says that it is about paths of secrets, where ``shardhold/`` is nobody's; else about SPIFFE IDs.

    Raises:
        InvalidArgumentError: The glob breaks a rule of paths, or ``**`` is only a part of a segment.
    """
    segments = _check_segments(pattern, name=name, segment_pattern=_GLOB_SEGMENT, has_reserved=is_path)
    for position, segment in enumerate(segments, start=1):
        if "**" in segment and segment != "**":
            raise InvalidArgumentError(
                f"{name}: segment {position} is {_shown(segment)}, want '**' only as a whole segment"
            )
    return segments


def segment_regex(segment: str) -> str:
    """Return the regular expression of one glob segment, ``**`` excepted, without anchors.

    Between two stars the leftmost place of a literal is always as good as a later one, so each step is atomic and
    nothing is tried twice: no glob makes matching slow.
    """
    first, *rest = [re.escape(literal) for literal in segment.split("*")]
    if not rest:
        return first
    middle = "".join(f"(?>[^/]*?{literal})" for literal in rest[:-1])
    return f"{first}{middle}[^/]*{rest[-1]}"


def _regex(segments: tuple[str, ...]) -> str:
    """Return the expression over a path with a '/' behind it. Runs between two ``**`` are atomic, as in a segment."""
    runs: list[list[str]] = [[]]
    for segment in segments:
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment_regex(segment) + "/")
    first, *rest = ["".join(run) for run in runs]
    if not rest:
        return first
    middle = "".join(f"(?>(?:[^/]*/)*?{run})" for run in rest[:-1] if run)
    return f"{first}{middle}(?:[^/]*/)*{rest[-1]}"


def _check_segments(
    text: str, *, name: str, segment_pattern: re.Pattern[str], has_reserved: bool = True
) -> tuple[str, ...]:
    if not text:
        raise InvalidArgumentError(f"{name}: got nothing, want 1 to {MAX_SEGMENTS} segments")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_PATH_BYTES:
        raise InvalidArgumentError(f"{name}: got {len(text)} characters, want at most {MAX_PATH_BYTES} bytes")
    if text.startswith("/") or text.endswith("/"):
        raise InvalidArgumentError(f"{name}: got a '/' at an end, want none")
    segments = tuple(text.split("/"))
    if len(segments) > MAX_SEGMENTS:
        raise InvalidArgumentError(f"{name}: got {len(segments)} segments, want at most {MAX_SEGMENTS}")
    for position, segment in enumerate(segments, start=1):
        if segment_pattern.fullmatch(segment) is None or segment in _DOTS:
            raise InvalidArgumentError(
                f"{name}: segment {position} is {_shown(segment)}, want 1 to 128 of [A-Za-z0-9._-], not '.' or '..'"
            )
    if has_reserved and segments[0] == RESERVED_SEGMENT:
        raise InvalidArgumentError(f"{name}: begins with '{RESERVED_SEGMENT}', which is nobody's")
    return segments


def _shown(text: str) -> str:
    return repr(text if len(text) <= 32 else text[:32] + "…")
