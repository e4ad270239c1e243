"""`nexus.policy.globs`: where the paths lie that globs can match."""

from hypothesis import example, given
from hypothesis import strategies as st

from nexus.policy.globs import GlobIndex, find_ranges

SEGMENTS = st.text("ab-.zA0", min_size=1, max_size=3)
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4)
GLOB_SEGMENTS = st.one_of(st.just("**"), st.just("*"), SEGMENTS, st.tuples(SEGMENTS, SEGMENTS).map("*".join))
GLOBS = st.lists(st.lists(GLOB_SEGMENTS, min_size=1, max_size=4), min_size=1, max_size=4)


@given(globs=GLOBS, path=PATHS)
@example(globs=[["a", "**"]], path=["a"])
@example(globs=[["a", "**", "**"]], path=["a"])
@example(globs=[["a-", "b*"]], path=["a-", "b"])
@example(globs=[["a"], ["a", "**"], ["a", "b", "*"]], path=["a", "b", "z"])
def test_what_a_glob_matches_lies_in_a_range(globs: list[list[str]], path: list[str]) -> None:
    """No path that a glob matches is outside of the ranges, and these are ascending and apart."""
    index = GlobIndex()
    for glob in globs:
        index.add(glob, 0)
    ranges = find_ranges(globs)
    text = "/".join(path)
    if index.match(path):
        assert any(after < text < before for after, before in ranges)
    ends = [end for one in ranges for end in one]
    assert ends == sorted(ends)


def test_ranges_are_narrow() -> None:
    """A path beside what a glob begins with, one sign before or after, is outside."""
    ranges = find_ranges([["team", "**"], ["db-*", "x"], ["one", "path"]])
    inside = ["team", "team/a", "team/z/z", "db-", "db-1/x", "one/path"]
    outside = ["tea", "team-x", "team.a/b", "team0", "tean", "db", "db.1", "one", "one/pat", "one/path/x", "one/path-"]
    assert [text for text in inside + outside if any(after < text < before for after, before in ranges)] == inside
