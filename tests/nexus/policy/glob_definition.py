"""The definition of a glob, matched by trying everything: what the index of the product is compared with."""

from hypothesis import strategies as st

_GLOB_SEGMENTS = st.one_of(
    st.just("**"), st.text("ab*", min_size=1, max_size=5).map(lambda text: text if "**" not in text else "*")
)
GLOBS = st.lists(_GLOB_SEGMENTS, min_size=1, max_size=6).map("/".join)
PATHS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6).map("/".join)


def glob_matches(glob: str, path: str) -> bool:
    """Match *path*, slowly."""
    return _match(glob.split("/"), path.split("/"))


def _match(glob: list[str], path: list[str]) -> bool:
    if not glob:
        return not path
    if glob[0] == "**":
        return any(_match(glob[1:], path[taken:]) for taken in range(len(path) + 1))
    return bool(path) and _match_segment(glob[0], path[0]) and _match(glob[1:], path[1:])


def _match_segment(glob: str, segment: str) -> bool:
    if not glob:
        return not segment
    if glob[0] == "*":
        return any(_match_segment(glob[1:], segment[taken:]) for taken in range(len(segment) + 1))
    return bool(segment) and segment[0] == glob[0] and _match_segment(glob[1:], segment[1:])
