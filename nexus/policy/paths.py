"""Paths of secrets, and the globs over both paths and SPIFFE IDs.

Rules:
- A path is 1 to 16 segments of ``[A-Za-z0-9._-]{1,128}`` joined by ``/``, none ``.`` or ``..``, at most 512 bytes,
  case-sensitive.
- What begins with ``shardhold/`` is nobody's, and neither is ``shardhold``.
- A glob is anchored at both ends. ``*`` matches any characters, also none, inside one segment and may be a part of one
  (``db-*``); ``**`` stands only as a whole segment and matches any number of segments, also none: ``team/**`` matches
  ``team``, ``team/a`` and ``team/a/b``, exactly what listing the prefix ``team`` shows.
"""

import re

from common.errors import InvalidArgumentError

MAX_PATH_BYTES = 512
MAX_SEGMENTS = 16

# First segment of everything that is Shardhold's own.
RESERVED_SEGMENT = "shardhold"

_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,128}")
_GLOB_SEGMENT = re.compile(r"[A-Za-z0-9._*-]{1,128}")
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
                f"{name}: segment {position} is {abbreviate(segment)}, want '**' only as a whole segment"
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
                f"{name}: segment {position} is {abbreviate(segment)}, want 1 to 128 of [A-Za-z0-9._-], not '.' or '..'"
            )
    if has_reserved and segments[0] == RESERVED_SEGMENT:
        raise InvalidArgumentError(f"{name}: begins with '{RESERVED_SEGMENT}', which is nobody's")
    return segments


def abbreviate(text: str) -> str:
    """Quote what a caller sent, for an error: at most 32 characters of it."""
    return repr(text if len(text) <= 32 else text[:32] + "…")
