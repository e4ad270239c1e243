"""Versions of a secret: listed, undeleted and destroyed; and what callers are told of them."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.errors import (
    ConflictError,
    CorruptRowError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    ShardholdError,
)
from nexus.policy.keeping import DEFAULT_MAX_VERSIONS, HIGHEST_MAX_VERSIONS
from nexus.store.protocol import MadeByRequest
from nexus.vault.expected import Expected
from nexus.vault.history import name_versions
from nexus.vault.secrets import MAX_PAGE, MAX_VERSIONS_NAMED
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, STRANGER, NexusCore
from tests.nexus.vault.asking import ANY, PATH, TEAM, delete, destroy, get, keep, list_states, patch, put, undelete


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may do everything below team/."""
    return make_nexus(TEAM)


def test_deleted_versions_come_back(nexus: NexusCore) -> None:
    """Also of a secret of which all is deleted, until a put begins a new incarnation."""
    put(nexus, 3)
    delete(nexus)
    assert undelete(nexus, 3, 1, 3).versions == (1, 3)
    assert list_states(nexus) == "ldl"
    assert get(nexus) == {"value": b"v3"}
    delete(nexus)
    put(nexus)
    with pytest.raises(NotFoundError, match=f"^{PATH}: no such version 3; the newest is 1$"):
        undelete(nexus, 3)


@pytest.mark.parametrize("versions", [(1,), (1, 2), (2, 4), (3,), (0,)])
def test_undeleting_what_is_not_deleted_brings_nothing_back(nexus: NexusCore, versions: Sequence[int]) -> None:
    """All or none; 1 is live, 2 deleted, 3 destroyed."""
    put(nexus, 3)
    delete(nexus, 2)
    destroy(nexus, 3)
    with pytest.raises(NotFoundError):
        undelete(nexus, *versions)
    assert list_states(nexus) == "ldx"


def test_destroyed_versions_never_come_back(nexus: NexusCore) -> None:
    """Neither by undelete nor by get; the number is not given out again."""
    put(nexus, 3)
    delete(nexus, 1)
    assert destroy(nexus, 3, 1).versions == (1, 3)
    for version in (0, 1, 3):
        with pytest.raises(NotFoundError, match="was destroyed"):
            get(nexus, version)
    assert get(nexus, 2) == {"value": b"v2"}
    assert put(nexus).versions == (4,)
    assert list_states(nexus) == "xlxl"


def test_a_destroy_without_versions_destroys_all_that_is_there(nexus: NexusCore) -> None:
    """Deleted ones as well; a put begins anew, and nothing of before is told."""
    old = put(nexus, 3)
    delete(nexus, 2)
    destroy(nexus, 1)
    assert destroy(nexus).versions == (2, 3)
    assert list_states(nexus) == "xxx"
    with pytest.raises(NotFoundError, match="version 3 was destroyed; no version is left"):
        destroy(nexus)
    assert put(nexus).incarnation != old.incarnation
    assert list_states(nexus) == "l"


def test_a_destroy_checks_what_is_current(nexus: NexusCore) -> None:
    """Also where all is deleted: the number counts on."""
    made = put(nexus, 2)
    delete(nexus)
    with pytest.raises(ConflictError, match="expected version 1, current is 2"):
        destroy(nexus, expected=Expected(1))
    with pytest.raises(InvalidArgumentError, match="expected_version: got 0"):
        destroy(nexus, expected=Expected(0))
    assert destroy(nexus, 1, expected=Expected(2, made.incarnation)).versions == (1,)


def test_what_is_sent_again_does_nothing_more(nexus: NexusCore) -> None:
    """Undelete, destroy and metadata answer as the first time, whatever happened since; ids of others are refused."""
    put(nexus, 4)
    delete(nexus, 1)
    ids = [os.urandom(16) for _ in range(3)]
    sends: list[Callable[[], MadeByRequest]] = [
        lambda: nexus.vault.undelete(APP, PATH, [1], ids[0]),
        lambda: nexus.vault.destroy(APP, PATH, [2], ANY, ids[1]),
        lambda: nexus.vault.update_metadata(APP, PATH, 3, ids[2]),
    ]
    made = [send() for send in sends]
    delete(nexus, 3)
    keep(nexus, 1)
    put(nexus)
    assert [send() for send in sends] == made
    page = nexus.vault.list_versions(APP, PATH)
    assert ([row.version for row in page.versions], page.max_versions) == ([5], 1)
    others: list[Callable[[], MadeByRequest]] = [
        lambda: nexus.vault.undelete(APP, PATH, [2], ids[0]),
        lambda: nexus.vault.destroy(APP, PATH, [], ANY, ids[1]),
        lambda: nexus.vault.update_metadata(APP, PATH, 4, ids[2]),
        lambda: nexus.vault.delete(APP, PATH, [2], ANY, ids[1]),
    ]
    for other in others:
        with pytest.raises(InvalidArgumentError, match="request_id: was used"):
            other()


def test_versions_are_listed_newest_first_in_pages(nexus: NexusCore) -> None:
    """With the moments at which they were made and destroyed, and how many are kept."""
    made = put(nexus, 5)
    delete(nexus, 4)
    destroy(nexus, 2)
    whole = nexus.vault.list_versions(APP, PATH)
    assert (whole.incarnation, whole.current_version, whole.next_token) == (made.incarnation, 5, "")
    assert (whole.max_versions, whole.max_versions_is_own) == (DEFAULT_MAX_VERSIONS, False)
    assert list_states(nexus) == "lxldl"
    assert [bool(row.destroyed_at) for row in whole.versions] == [False, False, False, True, False]
    for limit in range(1, 6):
        found, token = [], ""
        while True:
            page = nexus.vault.list_versions(APP, PATH, after=token, limit=limit)
            found += page.versions
            assert len(page.versions) <= limit
            if not (token := page.next_token):
                break
        assert found == whole.versions


def test_a_page_of_an_earlier_incarnation_is_not_gone_on_with(nexus: NexusCore) -> None:
    """Versions of two secrets would look like those of one."""
    put(nexus, 3)
    token = nexus.vault.list_versions(APP, PATH, limit=1).next_token
    destroy(nexus)
    put(nexus, 3)
    with pytest.raises(InvalidArgumentError, match="page_token: the secret was created anew"):
        nexus.vault.list_versions(APP, PATH, after=token)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda v: v.list_versions(APP, PATH, after="3"), "page_token: got '3'", id="token"),
        pytest.param(lambda v: v.list_versions(APP, PATH, after="9" * 19 + "-" + "0" * 32), "page_token", id="far"),
        pytest.param(lambda v: v.list_versions(APP, PATH, limit=MAX_PAGE + 1), "page_size: got 1001", id="page size"),
        pytest.param(lambda v: v.list_versions(APP, "/"), "path", id="path of versions"),
        pytest.param(lambda v: v.undelete(APP, PATH, [], bytes(16)), "versions: got none", id="undelete nothing"),
        pytest.param(lambda v: v.undelete(APP, PATH, [2**63], bytes(16)), "versions: got", id="undelete too far"),
        pytest.param(lambda v: v.undelete(APP, PATH, [1], b""), "request_id: got 0 bytes", id="undelete without id"),
        pytest.param(
            lambda v: v.destroy(APP, PATH, range(1, MAX_VERSIONS_NAMED + 2), ANY, bytes(16)),
            "versions: got 101",
            id="destroy 101",
        ),
        pytest.param(lambda v: v.destroy(APP, PATH, [], Expected(1, b"x"), bytes(16)), "incarnation", id="destroy"),
        pytest.param(lambda v: v.destroy(APP, PATH, [], ANY, b""), "request_id", id="destroy without id"),
        pytest.param(lambda v: v.update_metadata(APP, PATH, None, bytes(16)), "max_versions: got nothing", id="unset"),
        pytest.param(
            lambda v: v.update_metadata(APP, PATH, HIGHEST_MAX_VERSIONS + 1, bytes(16)), "max_versions: got", id="many"
        ),
        pytest.param(lambda v: v.update_metadata(APP, PATH, 1, b""), "request_id", id="metadata without id"),
        pytest.param(lambda v: v.patch(APP, PATH, {"a": b""}, [], ANY, b""), "request_id", id="patch without id"),
    ],
)
def test_a_malformed_call_is_refused(nexus: NexusCore, call: Callable[[object], object], message: str) -> None:
    """What it got and what it wants."""
    put(nexus)
    with pytest.raises(InvalidArgumentError, match=message):
        call(nexus.vault)


@pytest.mark.parametrize(
    ("versions", "words"),
    [
        pytest.param([], "", id="none"),
        pytest.param([6], "6", id="one"),
        pytest.param([1, 2, 3, 4, 6], "1 to 4, 6", id="a run and one"),
        pytest.param([1, 2, 4, 5], "1 to 2, 4 to 5", id="two runs"),
        pytest.param(range(1, 40, 2), "…, 25, 27, 29, 31, 33, 35, 37, 39", id="too many: the newest"),
    ],
)
def test_versions_are_named_in_few_words(versions: Sequence[int], words: str) -> None:
    """Runs by their ends."""
    assert name_versions(versions) == words


MISSING = [
    pytest.param(lambda n: None, lambda n: get(n), "no such secret", id="no secret"),
    pytest.param(lambda n: None, lambda n: patch(n, {"a": b"b"}), "no such secret", id="nothing to patch"),
    pytest.param(lambda n: None, lambda n: delete(n), "no such secret", id="nothing to delete"),
    pytest.param(lambda n: None, lambda n: undelete(n, 1), "no such secret", id="nothing to undelete"),
    pytest.param(lambda n: None, lambda n: destroy(n), "no such secret", id="nothing to destroy"),
    pytest.param(lambda n: None, lambda n: keep(n, 1), "no such secret", id="nothing to keep"),
    pytest.param(
        lambda n: None, lambda n: n.vault.list_versions(APP, PATH), "no such secret", id="nothing to list versions of"
    ),
    pytest.param(lambda n: put(n), lambda n: get(n, 9), "no such version 9; the newest is 1", id="too far"),
    pytest.param(
        lambda n: delete(n, 5, 7),
        lambda n: get(n),
        "version 7 is deleted; versions left: 1 to 4, 6",
        id="the newest is deleted",
    ),
    pytest.param(
        lambda n: delete(n, 7),
        lambda n: patch(n, {"a": b"b"}),
        "version 7 is deleted; versions left: 1 to 6",
        id="patch",
    ),
    pytest.param(
        lambda n: destroy(n, 7),
        lambda n: patch(n, {"a": b"b"}),
        "version 7 was destroyed; versions left: 1 to 6",
        id="patch of what is destroyed",
    ),
    pytest.param(
        lambda n: destroy(n, 3), lambda n: get(n, 3), "version 3 was destroyed; versions left: 1 to 2, 4 to 7", id="get"
    ),
    pytest.param(
        lambda n: delete(n, 3),
        lambda n: delete(n, 3),
        "version 3 is deleted; versions left: 1 to 2, 4 to 7",
        id="twice",
    ),
    pytest.param(
        lambda n: None, lambda n: undelete(n, 3), "version 3 is not deleted; versions left: 1 to 7", id="not deleted"
    ),
    pytest.param(
        lambda n: keep(n, 2), lambda n: get(n, 3), "version 3 was destroyed; versions left: 6 to 7", id="pruned"
    ),
    pytest.param(
        lambda n: delete(n), lambda n: delete(n), "version 7 is deleted; no version is left", id="all deleted"
    ),
]


@pytest.mark.parametrize(("before", "call", "message"), MISSING)
def test_what_is_not_found_is_told_with_what_is_left(
    nexus: NexusCore,
    before: Callable[[NexusCore], object],
    call: Callable[[NexusCore], object],
    message: str,
) -> None:
    """Of seven versions, if there is a secret at all."""
    if "no such" not in message:
        put(nexus, 7)
    before(nexus)
    with pytest.raises(NotFoundError) as caught:
        call(nexus)
    assert str(caught.value) == f"{PATH}: {message}"


def test_who_may_not_is_told_the_same_whether_it_is_there_or_not(nexus: NexusCore) -> None:
    """Which permission is lacking, and that a policy has to give it; no word of what exists."""
    vault = nexus.vault
    calls: list[tuple[str, Callable[[str], object]]] = [
        ("read", lambda path: vault.get(STRANGER, path, 0)),
        ("read", lambda path: vault.list_versions(STRANGER, path)),
        ("write", lambda path: vault.patch(STRANGER, path, {"a": b"b"}, [], ANY, os.urandom(16))),
        ("write", lambda path: vault.undelete(STRANGER, path, [1], os.urandom(16))),
        ("write", lambda path: vault.update_metadata(STRANGER, path, 1, os.urandom(16))),
        ("delete", lambda path: vault.delete(STRANGER, path, [], ANY, os.urandom(16))),
        ("delete", lambda path: vault.destroy(STRANGER, path, [], ANY, os.urandom(16))),
    ]
    put(nexus, 2)
    delete(nexus, 2)
    for permission, call in calls:
        for path in (PATH, "team/never"):
            with pytest.raises(DeniedError) as caught:
                call(path)
            wanted = f"{STRANGER.spiffe_id} is not allowed: a policy has to give it {permission} on this path"
            assert str(caught.value) == wanted


def test_a_listing_shows_what_is_left(nexus: NexusCore) -> None:
    """The newest version that is left, and deleted secrets where they are asked for."""
    put(nexus, 3)
    put(nexus, path="team/gone")
    delete(nexus, 3)
    nexus.vault.delete(APP, "team/gone", [], ANY, os.urandom(16))
    shown = {
        include_deleted: [
            (row.path, row.current_version, row.newest_live_version)
            for row in nexus.vault.list(APP, "", after="", limit=0, include_deleted=include_deleted)[0]
        ]
        for include_deleted in (False, True)
    }
    assert shown[False] == [(PATH, 3, 2)]
    assert shown[True] == [(PATH, 3, 2), ("team/gone", 1, 0)]


@pytest.mark.parametrize(
    ("damage", "call"),
    [
        pytest.param("DELETE FROM versions WHERE version = 2", lambda n: n.vault.list_versions(APP, PATH), id="lost"),
        pytest.param("DELETE FROM versions WHERE version = 2", lambda n: destroy(n, 2), id="lost, to be destroyed"),
        pytest.param("DELETE FROM versions WHERE version = 3", lambda n: put(n), id="newest lost, put"),
        pytest.param(
            "DELETE FROM versions WHERE version = 3", lambda n: patch(n, {"a": b"b"}), id="newest lost, patch"
        ),
        pytest.param(
            "UPDATE versions SET deleted = 1 WHERE version = 1", lambda n: undelete(n, 1), id="marks that nobody made"
        ),
    ],
)
def test_a_lost_version_is_damage_and_not_a_destroyed_one(
    nexus: NexusCore, tmp_path: Path, damage: str, call: Callable[[NexusCore], object]
) -> None:
    """Nobody is told that it was destroyed, and nothing is changed on top of it."""
    put(nexus, 3)
    tamper(tmp_path, damage)
    with pytest.raises(CorruptRowError):
        call(nexus)


def test_every_change_is_audited_with_its_versions(nexus: NexusCore) -> None:
    """In the change itself: who asks the audit finds who destroyed what."""
    put(nexus, 3)
    delete(nexus, 1, 2)
    undelete(nexus, 2)
    destroy(nexus, 1, 3)
    keep(nexus, 9)
    entries = [(entry.action, entry.detail, entry.version) for _, entry in nexus.list_change_entries()[3:]]
    assert entries == [
        ("secret.delete", "versions 1 to 2", 2),
        ("secret.undelete", "versions 2", 2),
        ("secret.destroy", "versions 1, 3", 3),
        ("secret.metadata", "max_versions 9", 3),
    ]
    with pytest.raises(ShardholdError):
        destroy(nexus, 1)
    assert nexus.list_entries()[-1].outcome == "NOT_FOUND"
