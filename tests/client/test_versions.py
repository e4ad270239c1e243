"""Calls about the versions of a secret, of both clients: what goes to the server and what comes back."""

from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message

import shardhold
from shardhold import Client, Destroyed, Undeleted, Updated, Version, VersionState, Written
from shardhold.v1 import secrets_pb2
from tests.client.servers import Nexus

INCARNATION = bytes(range(16))


def test_patch(client: Client, nexus: Nexus) -> None:
    """A patch sends the fields to set and those to take out, with check-and-set and a request id."""
    nexus.fail("PatchSecret", then=secrets_pb2.PatchSecretResponse(version=2, incarnation=INCARNATION, revision=8))
    assert client.patch("a", {"user": "app"}, remove=["old"], expected_version=1) == Written(2, INCARNATION, 8)
    client.patch("a", remove=iter(["old"]))
    both, only_removed = nexus.requests
    assert (dict(both.fields), list(both.removed_fields), both.expected_version) == ({"user": b"app"}, ["old"], 1)
    assert (dict(only_removed.fields), list(only_removed.removed_fields)) == ({}, ["old"])
    assert len({request.request_id for request in nexus.requests}) == 2
    assert not only_removed.HasField("expected_version")


def test_patch_that_removes_letters(client: Client, nexus: Nexus) -> None:
    """One name in place of a list of names is refused, not read as a list of letters."""
    with pytest.raises(shardhold.InvalidArgumentError, match="remove: got 'old', want names"):
        client.patch("a", remove="old")
    assert nexus.requests == []


def test_list_of_deleted_secrets(client: Client, nexus: Nexus) -> None:
    """Deleted secrets are asked for on every page, and each entry has its newest version that is left."""

    def answer(request: secrets_pb2.ListSecretsRequest) -> Message:
        entry = secrets_pb2.SecretEntry(path="a", current_version=3, newest_live_version=2)
        return secrets_pb2.ListSecretsResponse(secrets=[entry], next_page_token="" if request.page_token else "t")

    nexus.answers["ListSecrets"] = answer
    entries = list(client.list(include_deleted=True))
    assert [(entry.current_version, entry.newest_live_version) for entry in entries] == [(3, 2)] * 2
    assert [request.include_deleted for request in nexus.requests] == [True, True]


def test_versions(client: Client, nexus: Nexus) -> None:
    """Versions come page by page, each with its number, state and times."""
    written, destroyed = datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC)

    def answer(request: secrets_pb2.ListVersionsRequest) -> Message:
        states = [4, secrets_pb2.VERSION_STATE_LIVE] if not request.page_token else [2, 3]
        page = secrets_pb2.ListVersionsResponse(next_page_token="" if request.page_token else "t")
        for state in states:
            entry = page.versions.add(version=9, state=state)
            entry.created_at.FromDatetime(written)
            if state == secrets_pb2.VERSION_STATE_DESTROYED:
                entry.destroyed_at.FromDatetime(destroyed)
        return page

    nexus.answers["ListVersions"] = answer
    versions = client.versions("team/app/db", page_size=2)
    assert nexus.requests == []
    assert list(versions) == [
        Version(9, VersionState.UNKNOWN, written, None),
        Version(9, VersionState.LIVE, written, None),
        Version(9, VersionState.DELETED, written, None),
        Version(9, VersionState.DESTROYED, written, destroyed),
    ]
    assert [(request.path, request.page_size) for request in nexus.requests] == [("team/app/db", 2)] * 2


def test_undelete(client: Client, nexus: Nexus) -> None:
    """An undelete names its versions; none at all is refused before it leaves the process."""
    nexus.fail("UndeleteSecret", then=secrets_pb2.UndeleteSecretResponse(versions=[1, 2], revision=9))
    assert client.undelete("a", [2, 1]) == Undeleted((1, 2), 9)
    with pytest.raises(shardhold.InvalidArgumentError, match="versions: got none, want at least one$"):
        client.undelete("a", [])
    (request,) = nexus.requests
    assert (request.path, list(request.versions), len(request.request_id)) == ("a", [2, 1], 16)


def test_destroy(client: Client, nexus: Nexus) -> None:
    """A destroy names its versions, or None for all; an empty list is refused, and destroys nothing."""
    nexus.fail("DestroySecret", then=secrets_pb2.DestroySecretResponse(versions=[1], revision=9))
    assert client.destroy("a", [1], expected_version=2, request_id=b"r" * 16) == Destroyed((1,), 9)
    client.destroy("a", None)
    with pytest.raises(shardhold.InvalidArgumentError, match="want at least one, or None for all"):
        client.destroy("a", [])
    some, all_there = nexus.requests
    assert (list(some.versions), some.expected_version, some.request_id) == ([1], 2, b"r" * 16)
    assert (list(all_there.versions), all_there.HasField("expected_version")) == ([], False)


def test_update_metadata(client: Client, nexus: Nexus) -> None:
    """The number of versions to keep is sent even when it is 0, which means the configuration's."""
    nexus.fail("UpdateSecretMetadata", then=secrets_pb2.UpdateSecretMetadataResponse(revision=4))
    assert client.update_metadata("a", max_versions=0) == Updated(4)
    (request,) = nexus.requests
    assert request.HasField("max_versions")
    assert (request.path, request.max_versions, len(request.request_id)) == ("a", 0, 16)


def test_version_states_are_those_of_the_contract() -> None:
    """The SDK has all states of the contract, so a new one is noticed here."""
    names = {name.removeprefix("VERSION_STATE_").lower() for name in secrets_pb2.VersionState.DESCRIPTOR.values_by_name}
    assert names - {"unspecified"} == {state.value for state in VersionState} - {"unknown"}
