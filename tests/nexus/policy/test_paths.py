"""Paths, fields and globs: what is accepted, what is named when refused, and globs against a slow reference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import CorruptRowError, InvalidArgumentError
from nexus.policy.globs import GlobIndex
from nexus.policy.paths import check_path, check_prefix, split_glob
from nexus.vault.fields import MAX_BODY_BYTES, check_fields, decode_body, encode_body
from tests.nexus.policy.glob_definition import GLOBS, PATHS, glob_matches


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("a", id="one character"),
        pytest.param("team/app/db", id="ordinary"),
        pytest.param("Team/.hidden/..x/a.b-c_d", id="dots within segments"),
        pytest.param("/".join("x" * 16), id="16 segments"),
        pytest.param("x" * 128, id="segment of 128"),
        pytest.param("/".join(["x" * 127] * 4), id="511 bytes"),
        pytest.param("shardholder/x", id="only begins like the reserved segment"),
        pytest.param("team/shardhold", id="reserved word deeper down"),
    ],
)
def test_path_is_accepted(path: str) -> None:
    """A path within the limits is accepted, as a path and as a prefix."""
    check_path(path)
    check_prefix(path)


@pytest.mark.parametrize(
    ("path", "named"),
    [
        pytest.param("", "got nothing", id="empty"),
        pytest.param("/a", "'/' at an end", id="slash in front"),
        pytest.param("a/", "'/' at an end", id="slash behind"),
        pytest.param("a//b", "segment 2", id="empty segment"),
        pytest.param("a/./b", "segment 2", id="dot"),
        pytest.param("../b", "segment 1", id="two dots"),
        pytest.param("a/b c", "segment 2", id="blank"),
        pytest.param("a\n", "segment 1", id="newline at the end"),
        pytest.param("a/é", "segment 2", id="not ascii"),
        pytest.param("a/*", "segment 2", id="star"),
        pytest.param("x" * 129, "segment 1", id="segment of 129"),
        pytest.param("/".join("x" * 17), "17 segments", id="17 segments"),
        pytest.param("/".join(["x" * 128] * 4), "512 bytes", id="515 bytes"),
        pytest.param("\ud800", "segment 1", id="lone surrogate"),
        pytest.param("shardhold", "is reserved", id="reserved"),
        pytest.param("shardhold/canary", "is reserved", id="below reserved"),
    ],
)
def test_path_is_refused(path: str, named: str) -> None:
    """A path that breaks a rule is refused and the rule is named."""
    with pytest.raises(InvalidArgumentError, match=named):
        check_path(path)
    if path:
        with pytest.raises(InvalidArgumentError, match=f"^prefix: .*{named}"):
            check_prefix(path)


def test_empty_prefix_is_everything() -> None:
    """The empty prefix is accepted."""
    check_prefix("")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({}, "got none", id="no field"),
        pytest.param({str(n): b"" for n in range(65)}, "got 65", id="65 fields"),
        pytest.param({"": b""}, "name ''", id="empty name"),
        pytest.param({"a/b": b""}, "name 'a/b'", id="slash in a name"),
        pytest.param({"x" * 65: b""}, "name 'x", id="name of 65"),
        pytest.param({"value": bytes(MAX_BODY_BYTES - 12)}, "once encoded", id="one byte too long"),
    ],
)
def test_fields_are_refused(fields: dict[str, bytes], named: str) -> None:
    """Fields beyond a limit are refused and the limit is named."""
    with pytest.raises(InvalidArgumentError, match=named):
        check_fields(fields)


def test_largest_body_is_accepted() -> None:
    """Exactly 1 MiB once encoded is accepted, and 64 fields are."""
    fields = {"value": bytes(MAX_BODY_BYTES - 13)}
    check_fields(fields)
    assert len(encode_body(fields)) == MAX_BODY_BYTES
    check_fields({f"{n:0>64}": b"" for n in range(64)})


NAMES = st.text("abcXYZ019._-", min_size=1, max_size=64)


@given(st.dictionaries(NAMES, st.binary(max_size=40), min_size=1, max_size=8))
@settings(deadline=None)
def test_body_round_trip(fields: dict[str, bytes]) -> None:
    """What was encoded decodes, whatever the order in which the fields were given."""
    body = encode_body(fields)
    assert decode_body(body) == fields
    assert encode_body(dict(reversed(fields.items()))) == body


@given(st.binary(max_size=64))
@settings(deadline=None)
def test_decoding_noise_raises_or_is_canonical(noise: bytes) -> None:
    """Bytes are refused as a corrupt row, or are exactly what their fields encode to."""
    try:
        fields = decode_body(noise)
    except CorruptRowError:
        return
    assert encode_body(fields) == noise


def matches(pattern: str, path: str) -> bool:
    """Match as the product does, by an index of this one glob."""
    index = GlobIndex()
    index.add(split_glob(pattern), 0)
    return index.match(path.split("/")) == 1


@pytest.mark.parametrize(
    ("pattern", "matching", "others"),
    [
        pytest.param(
            "team/app", ["team/app"], ["team", "team/app/x", "xteam/app", "team/app2"], id="literal, anchored"
        ),
        pytest.param("team/*", ["team/a", "team/*"], ["team", "team/a/b"], id="one segment"),
        pytest.param("team/**", ["team", "team/a", "team/a/b/c"], ["teams", "x/team"], id="any segments, also none"),
        pytest.param("**", ["a", "a/b/c"], [], id="everything"),
        pytest.param("**/db", ["db", "a/db", "a/b/db"], ["a/db/c", "adb"], id="deep in front"),
        pytest.param("a/**/z", ["a/z", "a/b/z", "a/b/z/z"], ["a", "z", "a/b/z/y"], id="deep in the middle"),
        pytest.param("db-*", ["db-", "db-1"], ["db", "xdb-1", "db-1/x"], id="beginning"),
        pytest.param("*-db", ["-db", "a-db", "a-db-db"], ["a-dbx"], id="end"),
        pytest.param("a*b*c", ["abc", "abbc", "abcbc", "axbxc"], ["ac", "acb"], id="two stars"),
        pytest.param("**/a/**/b/**", ["a/b", "x/a/y/b/z", "a/a/b"], ["b/a", "a"], id="three deep"),
        pytest.param("a.c", ["a.c"], ["abc"], id="a dot is a dot"),
    ],
)
def test_glob(pattern: str, matching: list[str], others: list[str]) -> None:
    """A glob matches these and not those."""
    assert [path for path in matching if not matches(pattern, path)] == []
    assert [path for path in others if matches(pattern, path)] == []


@pytest.mark.parametrize("pattern", ["", "/a", "a/", "a**", "**b/c", "***", "a/b?", "a/[b]", "a/../b", "shardhold/**"])
def test_glob_is_refused(pattern: str) -> None:
    """A glob that breaks a rule is refused, naming the argument."""
    with pytest.raises(InvalidArgumentError, match=r"^paths\[3\]: "):
        split_glob(pattern, name="paths[3]")


@given(GLOBS, PATHS)
@settings(deadline=None, max_examples=500)
def test_glob_equals_its_definition(pattern: str, path: str) -> None:
    """The index of one glob and the definition agree."""
    assert matches(pattern, path) == glob_matches(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        pytest.param("*a" * 60 + "*b", "a" * 128, id="stars within a segment"),
        pytest.param("/".join(["**", "*a*"] * 7 + ["**", "b"]), "/".join(["a" * 30] * 16), id="deep stars"),
    ],
)
def test_no_glob_is_slow(pattern: str, path: str) -> None:
    """Globs made to backtrack come to an end; one that backtracks would take years."""
    assert not matches(pattern, path)
