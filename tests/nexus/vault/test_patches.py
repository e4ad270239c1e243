"""Patches: the next version is the newest one with some fields set and some taken out."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from common.errors import (
    ConflictError,
    DecryptionError,
    InvalidArgumentError,
)
from nexus.store.protocol import MadeByRequest
from nexus.vault.expected import Expected
from nexus.vault.fields import MAX_BODY_BYTES
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, NexusCore
from tests.nexus.vault.asking import ANY, PATH, TEAM, get, list_states, patch, put


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may do everything below team/."""
    return make_nexus(TEAM)


def test_a_patch_sets_some_fields_takes_some_out_and_keeps_the_others(nexus: NexusCore) -> None:
    """It is the next version; the one before is as it was."""
    nexus.vault.put(APP, PATH, {"user": b"app", "password": b"1", "old": b"x"}, ANY, os.urandom(16))
    made = patch(nexus, {"password": b"2", "new": b"n"}, ["old", "never"])
    assert made.versions == (2,)
    assert get(nexus) == {"user": b"app", "password": b"2", "new": b"n"}
    assert get(nexus, 1) == {"user": b"app", "password": b"1", "old": b"x"}


@pytest.mark.parametrize(
    ("fields", "removed", "message"),
    [
        pytest.param({}, [], "fields: got none, and none in removed_fields", id="nothing"),
        pytest.param({"a b": b""}, [], "fields: got the name 'a b'", id="a wrong name"),
        pytest.param({}, ["a b"], "removed_fields: got the name 'a b'", id="a wrong name to take out"),
        pytest.param({}, ["ä"], "removed_fields: got the name", id="a name to take out that is not ASCII"),
        pytest.param({"a": b""}, ["a"], "removed_fields: got 'a', which is in fields", id="a name in both"),
        pytest.param({str(n): b"" for n in range(65)}, [], "fields: got 65", id="65 fields"),
        pytest.param({}, [str(n) for n in range(65)], "removed_fields: got 65", id="65 names"),
        pytest.param({"a": bytes(MAX_BODY_BYTES)}, [], "bytes once encoded", id="too large"),
        pytest.param({}, ["value"], "removed_fields: no field would be left", id="no field left"),
        pytest.param(
            {"a": bytes(MAX_BODY_BYTES - 20)}, [], "^fields: got too much together", id="too large with what is there"
        ),
        pytest.param(
            {str(n): b"" for n in range(64)}, [], "^fields: got too much together", id="65 with what is there"
        ),
    ],
)
def test_a_malformed_patch_is_refused(
    nexus: NexusCore, fields: Mapping[str, bytes], removed: Sequence[str], message: str
) -> None:
    """Field and limit are named, and nothing is written."""
    put(nexus)
    with pytest.raises(InvalidArgumentError, match=message):
        patch(nexus, fields, removed)
    assert list_states(nexus) == "l"


def test_a_refused_patch_does_not_tell_how_much_is_there(nexus: NexusCore) -> None:
    """To write is not to read: the size of a password is nobody's who may write alone."""
    told = set()
    for size in (8, 24):
        nexus.vault.put(APP, PATH, {"password": bytes(size)}, ANY, os.urandom(16))
        with pytest.raises(InvalidArgumentError) as caught:
            patch(nexus, {"a": bytes(MAX_BODY_BYTES - 10)})
        told.add(str(caught.value))
    assert len(told) == 1


def test_a_patch_checks_what_is_current(nexus: NexusCore) -> None:
    """Version and incarnation; that nothing is there cannot be expected."""
    made = put(nexus, 2)
    for expected in (Expected(1), Expected(2, os.urandom(16))):
        with pytest.raises(ConflictError):
            patch(nexus, {"a": b"b"}, expected=expected)
    with pytest.raises(InvalidArgumentError, match="expected_version: got 0"):
        patch(nexus, {"a": b"b"}, expected=Expected(0))
    assert patch(nexus, {"a": b"b"}, expected=Expected(2, made.incarnation)).versions == (3,)


def test_a_patch_of_what_does_not_open_writes_nothing(nexus: NexusCore, tmp_path: Path) -> None:
    """A value that was changed in the store is never made into a good version."""
    put(nexus)
    tamper(tmp_path, "UPDATE versions SET value = zeroblob(length(value))")
    with pytest.raises(DecryptionError):
        patch(nexus, {"a": b"b"})
    assert list_states(nexus) == "l"


def test_a_patch_that_is_sent_again_makes_nothing_new(nexus: NexusCore) -> None:
    """Another one under its id is refused: other values, other names, one moved from one list to the other."""
    put(nexus)
    request_id = os.urandom(16)

    def send(fields: Mapping[str, bytes], removed: Sequence[str]) -> MadeByRequest:
        return nexus.vault.patch(APP, PATH, fields, removed, ANY, request_id)

    made = send({"a": b"b"}, ["c", "d"])
    assert send({"a": b"b"}, ["d", "c", "d"]) == made
    others: list[tuple[Mapping[str, bytes], Sequence[str]]]
    others = [({"a": b"c"}, ["c", "d"]), ({"a": b"b"}, ["c"]), ({"a": b"b", "c": b"d"}, ["d"]), ({}, ["c", "d"])]
    for fields, removed in others:
        with pytest.raises(InvalidArgumentError, match="request_id: was used"):
            send(fields, removed)
    assert list_states(nexus) == "ll"
