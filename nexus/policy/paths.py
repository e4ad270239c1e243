"""Paths of secrets, and globs over paths and SPIFFE IDs: their rules, and how they split into segments.

Rules:
- A path is 1 to 16 segments of ``[A-Za-z0-9._-]{1,128}`` joined by ``/``, none ``.`` or ``..``, at most 512 bytes,
  case-sensitive.
- ``shardhold`` and everything below it is reserved.
- A glob is anchored at both ends. ``*`` matches zero or more characters inside one segment, and may be part of one
  (``db-*``). ``**`` is always a whole segment and matches zero or more segments: ``team/**`` matches ``team``,
  ``team/a`` and ``team/a/b``, exactly what listing the prefix ``team`` shows.
"""

import re

from common.errors import InvalidArgumentError

MAX_PATH_BYTES = 512
MAX_SEGMENTS = 16

# First segment of what is Shardhold's own.
RESERVED_SEGMENT = "shardhold"

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_GLOB_SEGMENT = re.compile(r"[A-Za-z0-9._*-]{1,128}")
# Accepts an ordinary path in one pass; any other is split into segments, to say what is wrong with it.
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


def split_glob(pattern: str, *, name: str = "glob", is_path: bool = True) -> tuple[str, ...]:
    """Check a glob and split it into its segments; *name* is the argument's name in errors.

    With *is_path* it is a glob over paths of secrets, where ``shardhold/`` is reserved; without, over SPIFFE IDs.

    Raises:
        InvalidArgumentError: The glob breaks a rule of paths, or ``**`` is only part of a segment.
    """
    segments = _check_segments(pattern, name=name, segment_pattern=_GLOB_SEGMENT, has_reserved=is_path)
    for position, segment in enumerate(segments, start=1):
        if "**" in segment and segment != "**":
            raise InvalidArgumentError(
                f"{name}: segment {position} is {abbreviate(segment)}, want '**' only as a whole segment"
            )
    return segments


def segment_regex(segment: str) -> str:
    """Return the regular expression of one glob segment, ``**`` excepted, without anchors.

    Between two stars the leftmost match of a literal is as good as any later one, so each step is atomic and nothing is
    tried twice: no glob makes matching slow.
    """
    first, *rest = [re.escape(literal) for literal in segment.split("*")]
    if not rest:
        return first
    middle = "".join(f"(?>[^/]*?{literal})" for literal in rest[:-1])
    return f"{first}{middle}[^/]*{rest[-1]}"


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
                f"{name}: segment {position} is {abbreviate(segment)}, want 1 to 128 of [A-Za-z0-9._-], not '.' or '..'"
            )
    if has_reserved and segments[0] == RESERVED_SEGMENT:
        raise InvalidArgumentError(f"{name}: begins with '{RESERVED_SEGMENT}', which is reserved")
    return segments


def abbreviate(text: str) -> str:
    """Quote what a caller sent, for an error: at most 32 characters of it."""
    return repr(text if len(text) <= 32 else text[:32] + "…")
