"""Secrets: versions, incarnations, check-and-set, and requests that are sent again."""

import os
import random
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from common.clock import to_micros
from common.errors import (
    CallerGoneError,
    ConflictError,
    DeniedError,
    IntegrityError,
    InvalidArgumentError,
    NotFoundError,
    ShardholdError,
)
from nexus.access.gate import Caller
from nexus.policy.rules import Permission, Policy, PolicySet
from nexus.store.protocol import MadeByRequest
from nexus.vault.expected import Expected
from nexus.vault.secrets import MAX_PAGE, MAX_VERSION, MAX_VERSIONS_NAMED
from tests.kit.seed import make_random
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, SUPERUSER, NexusCore, identify

ANY = Expected()
PATH = "team/app/db"
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may do everything below team/."""
    return make_nexus(TEAM)


def put(nexus: NexusCore, value: bytes, expected: Expected = ANY, *, path: str = PATH) -> MadeByRequest:
    return nexus.vault.put(APP, path, {"value": value}, expected, os.urandom(16))


def get(nexus: NexusCore, version: int = 0, *, path: str = PATH) -> bytes:
    return nexus.vault.get(APP, path, version).fields["value"]


def delete(nexus: NexusCore, *versions: int, expected: Expected = ANY) -> MadeByRequest:
    return nexus.vault.delete(APP, PATH, versions, expected, os.urandom(16))


def test_each_put_makes_the_next_version_and_all_of_them_are_read(nexus: NexusCore) -> None:
    """1, 2, 3 of one incarnation; 0 is the newest."""
    made = [put(nexus, f"v{number}".encode()) for number in (1, 2, 3)]
    assert [one.versions for one in made] == [(1,), (2,), (3,)]
    assert len({one.incarnation for one in made}) == 1
    assert [one.revision for one in made] == sorted({one.revision for one in made})
    assert [get(nexus, version) for version in (1, 2, 3, 0)] == [b"v1", b"v2", b"v3", b"v3"]


def test_a_secret_comes_back_as_it_was_put(nexus: NexusCore) -> None:
    """Fields, version, incarnation and the time of the write."""
    fields = {"user": b"app", "password": bytes(range(256)), "empty": b""}
    made = nexus.vault.put(APP, PATH, fields, ANY, os.urandom(16))
    secret = nexus.vault.get(APP, PATH, 0)
    assert secret.fields == fields
    assert (secret.path, secret.version, secret.incarnation) == (PATH, 1, made.incarnation)
    assert secret.created_at == to_micros(nexus.clock.now())
    assert "password" not in repr(secret)


def test_what_is_stored_is_ciphertext(nexus: NexusCore) -> None:
    """The stored row holds neither the value nor a field name."""
    nexus.vault.put(APP, PATH, {"canary-name": b"canary-value"}, ANY, os.urandom(16))
    with nexus.store.read() as reader:
        row = reader.load_version(PATH, 1)
    assert row is not None
    assert b"canary" not in row.value + row.wrapped_dek


@pytest.mark.parametrize(
    ("expected", "fits"),
    [
        pytest.param(Expected(2), True, id="the current version"),
        pytest.param(Expected(1), False, id="an older version"),
        pytest.param(Expected(3), False, id="a future version"),
        pytest.param(Expected(0), False, id="must not exist"),
    ],
)
def test_check_and_set_on_a_secret_that_exists(nexus: NexusCore, expected: Expected, fits: bool) -> None:
    """A conflict names both versions and changes nothing."""
    put(nexus, b"v1")
    put(nexus, b"v2")
    if fits:
        assert put(nexus, b"v3", expected).versions == (3,)
        return
    with pytest.raises(ConflictError, match=f"expected version {expected.version}, current is 2"):
        put(nexus, b"v3", expected)
    with pytest.raises(ConflictError):
        delete(nexus, expected=replace(expected, version=expected.version or 9))
    assert get(nexus) == b"v2"


def test_check_and_set_on_a_secret_that_does_not_exist(nexus: NexusCore) -> None:
    """0 wants exactly that; any version is a conflict."""
    with pytest.raises(ConflictError, match="expected version 1, current is 0"):
        put(nexus, b"x", Expected(1))
    assert put(nexus, b"x", Expected(0)).versions == (1,)


def test_after_everything_is_deleted_a_put_starts_a_new_incarnation(nexus: NexusCore) -> None:
    """At version 1, with another incarnation, and nothing of the one before is read again."""
    first = put(nexus, b"old 1")
    put(nexus, b"old 2")
    assert delete(nexus).versions == (1, 2)
    for version in (0, 1, 2):
        with pytest.raises(NotFoundError):
            get(nexus, version)
    second = put(nexus, b"new", Expected(0))
    assert second.versions == (1,)
    assert second.incarnation != first.incarnation
    assert get(nexus) == b"new"
    with pytest.raises(NotFoundError):
        get(nexus, 2)


def test_a_check_and_set_of_the_incarnation_before_is_a_conflict(nexus: NexusCore) -> None:
    """Version 1 of what was deleted is not version 1 of what was created anew."""
    old = put(nexus, b"old")
    delete(nexus)
    new = put(nexus, b"new")
    with pytest.raises(ConflictError, match="created anew since"):
        put(nexus, b"x", Expected(1, old.incarnation))
    with pytest.raises(ConflictError):
        delete(nexus, expected=Expected(1, old.incarnation))
    assert put(nexus, b"x", Expected(1, new.incarnation)).versions == (2,)


def test_a_deleted_newest_version_is_not_found_and_older_ones_are_read(nexus: NexusCore) -> None:
    """0 never falls back to an older version; the next put goes on after it."""
    first = put(nexus, b"v1")
    put(nexus, b"v2")
    delete(nexus, 2)
    for version in (0, 2):
        with pytest.raises(NotFoundError):
            get(nexus, version)
    assert get(nexus, 1) == b"v1"
    third = put(nexus, b"v3", Expected(2))
    assert (third.versions, third.incarnation) == ((3,), first.incarnation)


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param((3,), id="one that never was"),
        pytest.param((1, 3), id="one that is, one that is not"),
        pytest.param((0,), id="zero"),
        pytest.param((2,), id="one that is deleted"),
    ],
)
def test_deleting_what_is_not_there_deletes_nothing(nexus: NexusCore, versions: tuple[int, ...]) -> None:
    """All or none."""
    put(nexus, b"v1")
    put(nexus, b"v2")
    delete(nexus, 2)
    with pytest.raises(NotFoundError):
        delete(nexus, *versions)
    assert get(nexus, 1) == b"v1"


def test_a_version_named_twice_is_deleted_once(nexus: NexusCore) -> None:
    """A version named twice is deleted once, and the answer lists versions once, ascending."""
    for value in (b"v1", b"v2", b"v3"):
        put(nexus, value)
    assert delete(nexus, 3, 1, 3).versions == (1, 3)
    with pytest.raises(NotFoundError, match="team/never: no such secret"):
        nexus.vault.delete(APP, "team/never", (), ANY, os.urandom(16))


def test_a_put_that_is_sent_again_makes_nothing_new(nexus: NexusCore) -> None:
    """It returns what the first one made, even when others wrote since, and whatever it expects now."""
    request_id = os.urandom(16)
    first = nexus.vault.put(APP, PATH, {"value": b"v1"}, Expected(0), request_id)
    put(nexus, b"v2")
    assert nexus.vault.put(APP, PATH, {"value": b"v1"}, Expected(0), request_id) == first
    assert get(nexus) == b"v2"


def test_a_delete_that_is_sent_again_deletes_nothing_more(nexus: NexusCore) -> None:
    """It returns what the first one did."""
    put(nexus, b"v1")
    request_id = os.urandom(16)
    first = nexus.vault.delete(APP, PATH, (), ANY, request_id)
    assert nexus.vault.delete(APP, PATH, (), ANY, request_id) == first


def test_a_request_id_of_another_request_is_refused(nexus: NexusCore) -> None:
    """A reused request id never gives the other request's answer, and nothing is written."""
    request_id = os.urandom(16)
    nexus.vault.put(APP, PATH, {"value": b"v1"}, ANY, request_id)
    with pytest.raises(InvalidArgumentError, match="request_id"):
        nexus.vault.put(APP, "team/other", {"value": b"x"}, ANY, request_id)
    with pytest.raises(NotFoundError):
        get(nexus, path="team/other")
    with pytest.raises(InvalidArgumentError, match="request_id"):
        nexus.vault.delete(APP, PATH, (), ANY, request_id)
    assert get(nexus) == b"v1"


def test_the_request_id_of_another_caller_is_none_of_ours(nexus: NexusCore) -> None:
    """Each caller has its own; the same bytes make two versions."""
    request_id = os.urandom(16)
    other = identify("team/other")
    assert nexus.vault.put(APP, PATH, {"value": b"a"}, ANY, request_id).versions == (1,)
    assert nexus.vault.put(other, PATH, {"value": b"b"}, ANY, request_id).versions == (2,)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("value = (SELECT value FROM versions WHERE path = 'team/other')", id="value of another path"),
        pytest.param("wrapped_dek = (SELECT wrapped_dek FROM versions WHERE path = 'team/other')", id="DEK of another"),
        pytest.param(
            "(dek_id, wrapped_dek, value) = "
            "(SELECT dek_id, wrapped_dek, value FROM versions WHERE path = 'team/other')",
            id="whole row of another path",
        ),
        pytest.param("incarnation = randomblob(16)", id="another incarnation"),
        pytest.param("kek_id = 7", id="unknown KEK"),
        pytest.param("value = zeroblob(40)", id="zeros"),
        pytest.param("value = x''", id="nothing"),
    ],
)
def test_a_row_that_does_not_open_is_an_error_and_the_rest_goes_on(nexus: NexusCore, tmp_path: Path, sql: str) -> None:
    """A damaged row never gives another plaintext or an empty value; the audit says that it did not open."""
    put(nexus, b"v1")
    put(nexus, b"other", path="team/other")
    tamper(tmp_path, f"UPDATE versions SET {sql} WHERE path = ?", PATH)
    with pytest.raises(IntegrityError):
        get(nexus)
    assert get(nexus, path="team/other") == b"other"
    outcomes = [entry.outcome for entry in nexus.list_entries()]
    assert outcomes[0] in ("DECRYPTION", "CORRUPT_ROW")
    assert outcomes[1] == "ok"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param({"path": "team//db"}, "path: segment 2", id="path"),
        pytest.param({"path": "shardhold/x"}, "is reserved", id="reserved path"),
        pytest.param({"fields": {}}, "fields: got none", id="no field"),
        pytest.param({"fields": {f"f{i}": b"" for i in range(65)}}, "fields: got 65", id="65 fields"),
        pytest.param({"fields": {"a b": b""}}, "fields: got the name", id="field name"),
        pytest.param({"fields": {"value": bytes(1024 * 1024)}}, "at most 1048576", id="over 1 MiB"),
        pytest.param({"expected": Expected(1, b"short")}, "expected_incarnation: got 5", id="short incarnation"),
        pytest.param({"expected": Expected(None, bytes(16))}, "without expected_version", id="incarnation alone"),
        pytest.param({"request_id": b""}, "request_id: got 0", id="no request id"),
        pytest.param({"request_id": bytes(17)}, "request_id: got 17", id="long request id"),
    ],
)
def test_a_malformed_put_is_refused_before_any_work(nexus: NexusCore, call: dict[str, object], message: str) -> None:
    """Field and limit are named; nobody's permission is asked."""
    good = {"path": PATH, "fields": {"value": b"v"}, "expected": ANY, "request_id": bytes(16)}
    with pytest.raises(InvalidArgumentError, match=message):
        nexus.vault.put(APP, **{**good, **call})  # type: ignore[arg-type]
    assert nexus.list_entries() == []


@pytest.mark.parametrize(
    ("versions", "expected", "message"),
    [
        pytest.param(range(1, MAX_VERSIONS_NAMED + 2), ANY, "versions: got 101", id="101 versions"),
        pytest.param([MAX_VERSION + 1], ANY, "versions: got 9223372036854775808", id="version out of range"),
        pytest.param([], Expected(0), "expected_version: got 0", id="expects nothing"),
        pytest.param([], Expected(None, bytes(16)), "without expected_version", id="incarnation alone"),
    ],
)
def test_a_malformed_delete_is_refused_before_any_work(
    nexus: NexusCore, versions: list[int], expected: Expected, message: str
) -> None:
    """Field and limit are named."""
    with pytest.raises(InvalidArgumentError, match=message):
        nexus.vault.delete(APP, PATH, versions, expected, bytes(16))


@pytest.mark.parametrize("version", [2, MAX_VERSION, MAX_VERSION + 1, 2**64 - 1])
def test_a_version_out_of_range_is_refused_and_one_that_never_was_is_not_found(nexus: NexusCore, version: int) -> None:
    """The store is never asked for what it cannot count."""
    put(nexus, b"v1")
    wanted: type[ShardholdError] = NotFoundError if version <= MAX_VERSION else InvalidArgumentError
    with pytest.raises(wanted):
        get(nexus, version)


def test_the_largest_body_fits(nexus: NexusCore) -> None:
    """1 MiB once encoded, to the byte."""
    value = os.urandom(1024 * 1024 - 4 - 5 - 4)
    nexus.vault.put(APP, PATH, {"value": value}, ANY, os.urandom(16))
    assert get(nexus) == value


def fill(nexus: NexusCore, *paths: str) -> None:
    for path in paths:
        nexus.vault.put(SUPERUSER, path, {"value": b"x"}, ANY, os.urandom(16))


def listed(nexus: NexusCore, prefix: str = "", *, after: str = "", limit: int = 0) -> tuple[list[str], str]:
    rows, token = nexus.vault.list(APP, prefix, after=after, limit=limit)
    return [row.path for row in rows], token


def test_a_listing_shows_what_the_caller_may_list_and_nothing_of_the_rest(nexus: NexusCore) -> None:
    """Whole segments below the prefix, in order; deleted secrets are gone."""
    fill(nexus, "team/a", "team/a/b", "team/ab", "other/a", "aaa", "zzz")
    put(nexus, b"x")
    delete(nexus)
    assert listed(nexus) == (["team/a", "team/a/b", "team/ab"], "")
    assert listed(nexus, "team/a") == (["team/a", "team/a/b"], "")
    assert listed(nexus, "other") == ([], "")
    assert listed(nexus, "none") == ([], "")


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_together_show_everything_once_and_tell_nothing_of_what_is_hidden(nexus: NexusCore, limit: int) -> None:
    """No token and no empty page betrays a path that the caller may not list."""
    hidden = [f"hidden/{i}" for i in range(4)] + ["team.hidden/x", "zz/1", "zz/2"]
    shown = [f"team/{i}" for i in range(4)]
    fill(nexus, *hidden, *shown)
    pages, token = [], ""
    while True:
        page, token = listed(nexus, after=token, limit=limit)
        assert token in ("", *shown)
        pages.append(page)
        if not token:
            break
    assert [path for page in pages for path in page] == shown
    assert all(pages)


SEGMENTS = ("a", "b", "a-b", "ab", "a.")
GLOB_SEGMENTS = ("a", "b", "a-b", "zz", "**", "*", "a*", "*b", "a*b")


def draw_policy(chance: random.Random, number: int) -> Policy:
    """Make a policy of caller *number* with one to four globs."""
    globs = {"/".join(chance.choices(GLOB_SEGMENTS, k=chance.randint(1, 4))) for _ in range(chance.randint(1, 4))}
    if number % 2:
        globs = {f"{chance.choice(SEGMENTS)}/**", *sorted(globs)[1:]}
    caller = f"spiffe://example.org/drawn/{number}"
    permissions = (Permission.LIST,) if number % 5 else (Permission.READ,)
    return Policy(name=f"drawn-{number}", spiffe_ids=(caller,), paths=tuple(globs), permissions=permissions)


def test_a_listing_is_what_asking_for_each_path_gives(make_nexus: MakeNexus) -> None:
    """Whatever the globs, the prefix and the size of pages: listing shows exactly what the policies allow."""
    chance = make_random("listing")
    policies = [draw_policy(chance, number) for number in range(60)]
    nexus = make_nexus(*policies)
    paths = sorted("/".join(path) for count in (1, 2, 3) for path in product(SEGMENTS, repeat=count))
    fill(nexus, *paths)
    decide, listed_any = PolicySet(policies).decide, 0
    for number in range(60):
        caller = identify(f"drawn/{number}")
        for prefix in ("", "a", "a/b", "a-b", "zz"):
            below = [path for path in paths if not prefix or path == prefix or path.startswith(f"{prefix}/")]
            wanted = [path for path in below if decide(caller.spiffe_id, Permission.LIST, path)]
            assert list_all(nexus, caller, prefix, limit=chance.choice((3, 20, 200, 0))) == wanted
            listed_any += bool(wanted)
    assert listed_any > 60  # of 300


def list_all(nexus: NexusCore, caller: Caller, prefix: str, *, limit: int) -> list[str]:
    found, token = list[str](), ""
    while True:
        try:
            rows, token = nexus.vault.list(caller, prefix, after=token, limit=limit)
        except DeniedError:
            return []
        found += (row.path for row in rows)
        if not token:
            return found


def test_a_listing_does_not_read_what_no_glob_can_match(nexus: NexusCore) -> None:
    """Secrets before and after those that the caller's globs begin with cost the listing nothing."""
    fill(nexus, "team/a", *(f"{folder}/{number}" for folder in ("other", "zzz") for number in range(40)))
    asked: list[None] = []

    def is_wanted() -> bool:
        asked.append(None)
        return True

    rows, token = nexus.vault.list(APP, "", after="", limit=9, is_wanted=is_wanted)
    assert ([row.path for row in rows], token) == (["team/a"], "")
    assert len(asked) == 2  # "team" itself, and what is below it


def test_a_listing_ends_when_its_caller_has_left(make_nexus: MakeNexus) -> None:
    """Between a few rows and the next it is asked whether somebody waits."""
    hidden = Policy(name="a", spiffe_ids=TEAM.spiffe_ids, paths=("**/never",), permissions=(Permission.LIST,))
    nexus = make_nexus(hidden)
    fill(nexus, *(f"other/{number}" for number in range(40)))
    answers = [True, True, False]
    with pytest.raises(CallerGoneError):
        nexus.vault.list(APP, "", after="", limit=1, is_wanted=lambda: answers.pop(0))
    assert answers == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param({"limit": MAX_PAGE + 1}, "page_size: got 1001", id="page size"),
        pytest.param({"after": "/x"}, "page_token", id="token"),
        pytest.param({"prefix": "team/"}, "prefix", id="prefix"),
    ],
)
def test_a_malformed_listing_is_refused(nexus: NexusCore, arguments: dict[str, object], message: str) -> None:
    """Field and limit are named."""
    with pytest.raises(InvalidArgumentError, match=message):
        nexus.vault.list(APP, **{"prefix": "", "after": "", "limit": 0, **arguments})  # type: ignore[arg-type]
