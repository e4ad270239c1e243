"""What services rely on: the same of a real nexus and of the fake one that they test with, through both clients.

test_contract.py here runs it with the fake one, the one of tests/cluster with a real one. Each brings a fixture
`client`: it may do everything below `TOP`, read below `READ_ONLY`, and nothing elsewhere. Every test has a path of its
own.
"""

import os
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, TypeAlias

import pytest

import shardhold
from pilot.dev.identities import TRUST_DOMAIN
from shardhold import Client, State, VersionState
from tests.kit.patience import at_most

APP: Final = "/contract/app"
SPIFFE_ID: Final = f"spiffe://{TRUST_DOMAIN}{APP}"
TOP: Final = "contract"
READ_ONLY: Final = "contract-read"
LIVE, DELETED, DESTROYED = VersionState.LIVE, VersionState.DELETED, VersionState.DESTROYED

Try: TypeAlias = Callable[[Client, str], object]


@pytest.fixture
def path() -> str:
    """Return a path that no other test uses."""
    return f"{TOP}/{uuid.uuid4().hex}"


def _put(client: Client, path: str, count: int) -> bytes:
    """Write versions 1 to *count*, and return their incarnation."""
    for number in range(1, count + 1):
        written = client.put(path, {"n": str(number)})
    return written.incarnation


def _states(client: Client, path: str) -> dict[int, VersionState]:
    return {version.number: version.state for version in client.versions(path)}


class TestWriting:
    """Put and patch."""

    def test_put_and_get(self, client: Client, path: str) -> None:
        """A secret has what was put, in a version that counts from 1; every version stays readable."""
        before = datetime.now(UTC)
        first = client.put(path, {"user": "münchen", "key": b"\x00\xff"})
        second = client.put(path, {"user": "b"})
        assert (first.version, second.version, second.incarnation) == (1, 2, first.incarnation)
        assert len(first.incarnation) == 16
        assert second.revision > first.revision
        secret = client.get(path)
        assert (secret.path, secret.version, secret.incarnation) == (path, 2, first.incarnation)
        assert dict(secret) == {"user": b"b"}  # a put replaces all fields
        assert dict(client.get(path, version=1)) == {"key": b"\x00\xff", "user": "münchen".encode()}
        assert abs((secret.created_at - before).total_seconds()) < 3600

    def test_fields_are_in_order(self, client: Client, path: str) -> None:
        """Fields are iterated over by name."""
        client.put(path, dict.fromkeys("cabfed", b""))
        assert list(client.get(path)) == list("abcdef")

    def test_check_and_set(self, client: Client, path: str) -> None:
        """A write that expects another version or incarnation changes nothing."""
        made = client.put(path, {"n": b"1"}, expected_version=0)
        client.put(path, {"n": b"2"}, expected_version=1, expected_incarnation=made.incarnation)
        for expectation in (0, 1, 3):
            with pytest.raises(shardhold.ConflictError, match=f"expected version {expectation}, current is 2"):
                client.put(path, {"n": b"3"}, expected_version=expectation)
        with pytest.raises(shardhold.ConflictError, match="of another incarnation"):
            client.put(path, {"n": b"3"}, expected_version=2, expected_incarnation=bytes(16))
        assert client.get(path).version == 2

    def test_repeated(self, client: Client, path: str) -> None:
        """A change that is repeated under its request id changes nothing; another change under it is refused."""
        request_id = os.urandom(16)
        made = client.put(path, {"n": b"1"}, request_id=request_id)
        client.put(path, {"n": b"2"})
        assert client.put(path, {"n": b"1"}, request_id=request_id) == made
        assert client.get(path).version == 2
        for other in ({"n": b"3"}, {"m": b"1"}):
            with pytest.raises(shardhold.InvalidArgumentError, match="request_id: was used for another request"):
                client.put(path, other, request_id=request_id)
        with pytest.raises(shardhold.InvalidArgumentError, match="request_id: was used for another request"):
            client.delete(path, request_id=request_id)

    def test_patch(self, client: Client, path: str) -> None:
        """A patch sets some fields, takes some out, and leaves the others."""
        client.put(path, {"a": b"1", "b": b"2", "c": b"3"})
        made = client.patch(path, {"b": "new", "d": b""}, remove=["c", "none"])
        assert made.version == 2
        assert dict(client.get(path)) == {"a": b"1", "b": b"new", "d": b""}
        client.patch(path, remove=["a"], expected_version=2, expected_incarnation=made.incarnation)
        assert list(client.get(path)) == ["b", "d"]
        assert len(client.get(path, version=1)) == 3

    def test_patch_that_is_refused(self, client: Client, path: str) -> None:
        """A patch of a wrong version, or one that would leave no field, changes nothing."""
        client.put(path, {"a": b"1"})
        with pytest.raises(shardhold.ConflictError, match="expected version 7, current is 1"):
            client.patch(path, {"a": b"2"}, expected_version=7)
        with pytest.raises(shardhold.InvalidArgumentError, match="no field would be left"):
            client.patch(path, remove=["a"])
        with pytest.raises(shardhold.InvalidArgumentError, match="fields: got too much together with the fields"):
            client.patch(path, {"b": bytes(2**20 - 10)})
        assert (client.get(path).version, client.get(path)["a"]) == (1, b"1")

    def test_patch_needs_a_current_version(self, client: Client, path: str) -> None:
        """A secret that is not there, or whose newest version is deleted, cannot be patched."""
        with pytest.raises(shardhold.NotFoundError):
            client.patch(path, {"a": b"1"})
        _put(client, path, 2)
        client.delete(path, [2])
        with pytest.raises(shardhold.NotFoundError):
            client.patch(path, {"a": b"1"})

    def test_repeated_patch(self, client: Client, path: str) -> None:
        """A patch that is repeated under its request id is made once."""
        client.put(path, {"a": b"1"})
        request_id = os.urandom(16)
        made = client.patch(path, {"b": b"2"}, remove=["x", "y"], request_id=request_id)
        assert client.patch(path, {"b": b"2"}, remove=["y", "x"], request_id=request_id) == made
        assert client.get(path).version == 2


class TestRemoving:
    """Delete, undelete, destroy and pruning."""

    def test_delete(self, client: Client, path: str) -> None:
        """A deleted version cannot be read, and the error names what is left."""
        _put(client, path, 5)
        assert client.delete(path, [5, 2]).versions == (2, 5)
        for version in (0, 5):
            with pytest.raises(shardhold.NotFoundError) as caught:
                client.get(path, version=version)
            assert caught.value.message == f"{path}: version 5 is deleted; versions left: 1, 3 to 4"
        assert client.get(path, version=4)["n"] == b"4"
        with pytest.raises(shardhold.NotFoundError, match="version 2 is deleted"):
            client.delete(path, [1, 2])
        assert _states(client, path) == {5: DELETED, 4: LIVE, 3: LIVE, 2: DELETED, 1: LIVE}

    def test_delete_everything(self, client: Client, path: str) -> None:
        """Without versions all that are left are deleted; the next put begins a new incarnation."""
        incarnation = _put(client, path, 3)
        client.delete(path, [2])
        assert client.delete(path, expected_version=3).versions == (1, 3)
        with pytest.raises(shardhold.NotFoundError, match="version 3 is deleted; no version is left"):
            client.get(path)
        with pytest.raises(shardhold.NotFoundError):
            client.delete(path)
        assert set(_states(client, path).values()) == {DELETED}
        again = client.put(path, {"n": b"new"}, expected_version=0)
        assert again.version == 1
        assert again.incarnation != incarnation
        assert _states(client, path) == {1: LIVE}

    def test_put_over_a_deleted_version(self, client: Client, path: str) -> None:
        """While any version is left, the next one continues the incarnation."""
        incarnation = _put(client, path, 2)
        client.delete(path, [2])
        again = client.put(path, {"n": b"3"}, expected_version=2)
        assert (again.version, again.incarnation) == (3, incarnation)

    def test_undelete(self, client: Client, path: str) -> None:
        """Deleted versions come back whole."""
        _put(client, path, 3)
        client.delete(path)
        assert client.undelete(path, [3, 1, 3]).versions == (1, 3)
        assert client.get(path)["n"] == b"3"
        assert _states(client, path) == {3: LIVE, 2: DELETED, 1: LIVE}
        with pytest.raises(shardhold.NotFoundError, match="version 3 is not deleted"):
            client.undelete(path, [2, 3])
        assert _states(client, path)[2] is DELETED

    def test_destroy(self, client: Client, path: str) -> None:
        """A destroyed version stays in the history, deleted or not before, and never comes back."""
        _put(client, path, 3)
        client.delete(path, [1])
        assert client.destroy(path, [1, 2]).versions == (1, 2)
        versions = {version.number: version for version in client.versions(path)}
        assert {number: version.state for number, version in versions.items()} == {
            3: LIVE,
            2: DESTROYED,
            1: DESTROYED,
        }
        assert [versions[number].destroyed_at is None for number in (3, 2, 1)] == [True, False, False]
        for gone in (
            lambda: client.get(path, version=2),
            lambda: client.undelete(path, [1]),
            lambda: client.delete(path, [2]),
            lambda: client.destroy(path, [3, 1]),
        ):
            with pytest.raises(shardhold.NotFoundError, match="was destroyed; version left: 3"):
                gone()
        assert client.get(path)["n"] == b"3"

    def test_destroy_everything(self, client: Client, path: str) -> None:
        """None stands for all versions; afterwards the path begins anew."""
        incarnation = _put(client, path, 2)
        client.delete(path, [1])
        with pytest.raises(shardhold.ConflictError):
            client.destroy(path, None, expected_version=1)
        assert client.destroy(path, None, expected_version=2, expected_incarnation=incarnation).versions == (1, 2)
        assert _states(client, path) == {2: DESTROYED, 1: DESTROYED}
        with pytest.raises(shardhold.NotFoundError):
            client.destroy(path, None)
        assert client.put(path, {"n": b"1"}).version == 1

    def test_repeated(self, client: Client, path: str) -> None:
        """Repeated under its request id, a removal removes nothing more."""
        _put(client, path, 3)
        one, two, three = (os.urandom(16) for _ in range(3))
        deleted = client.delete(path, [1, 2], request_id=one)
        assert client.delete(path, [2, 1], request_id=one) == deleted
        brought_back = client.undelete(path, [1, 2], request_id=two)
        assert client.undelete(path, [2, 1, 1], request_id=two) == brought_back
        destroyed = client.destroy(path, [2], request_id=three)
        assert client.destroy(path, [2], request_id=three) == destroyed
        assert _states(client, path) == {3: LIVE, 2: DESTROYED, 1: LIVE}

    def test_max_versions(self, client: Client, path: str) -> None:
        """What is more than *max_versions* is destroyed at once and with each put; it leaves the history."""
        _put(client, path, 4)
        client.delete(path, [4])
        before = client.get(path, version=3)
        changed = client.update_metadata(path, max_versions=2)
        assert changed.revision > 0
        assert _states(client, path) == {4: DELETED, 3: LIVE}
        with pytest.raises(shardhold.NotFoundError, match="version 1 was destroyed"):
            client.get(path, version=1)
        client.put(path, {"n": b"5"}, expected_incarnation=before.incarnation, expected_version=4)
        assert _states(client, path) == {5: LIVE, 4: DELETED}
        client.delete(path, [5])
        _put(client, path, 3)
        assert _states(client, path) == {3: LIVE, 2: LIVE}  # it stays with the path

    def test_max_versions_of_nothing(self, client: Client, path: str) -> None:
        """There is nothing to set where there is no secret."""
        with pytest.raises(shardhold.NotFoundError):
            client.update_metadata(path, max_versions=2)

    @pytest.mark.parametrize(
        "attempt",
        [
            pytest.param(lambda client, path: client.get(path), id="get"),
            pytest.param(lambda client, path: list(client.versions(path)), id="versions"),
            pytest.param(lambda client, path: client.delete(path), id="delete"),
            pytest.param(lambda client, path: client.undelete(path, [1]), id="undelete"),
            pytest.param(lambda client, path: client.destroy(path, None), id="destroy"),
        ],
    )
    def test_nothing_there(self, client: Client, path: str, attempt: Try) -> None:
        """The error for a path that does not exist names it, with code and reason."""
        with pytest.raises(shardhold.NotFoundError) as caught:
            attempt(client, path)
        error = caught.value
        assert (error.message, error.reason, error.hint) == (f"{path}: no such secret", "NOT_FOUND", "")
        assert error.code is not None
        assert error.code.name == "NOT_FOUND"

    def test_no_such_version(self, client: Client, path: str) -> None:
        """A version beyond the newest is not there."""
        _put(client, path, 2)
        with pytest.raises(shardhold.NotFoundError, match="no such version 9; the newest is 2"):
            client.get(path, version=9)


class TestListing:
    """Lists of paths and of versions."""

    def test_prefix(self, client: Client, path: str) -> None:
        """A prefix is whole segments: it lists the path itself and everything below, by name."""
        for name in (path, f"{path}/b", f"{path}/a/c", f"{path}-other"):
            client.put(name, {"n": b"1"})
        entries = list(client.list(path))
        assert [entry.path for entry in entries] == [path, f"{path}/a/c", f"{path}/b"]
        assert {(entry.current_version, entry.newest_live_version) for entry in entries} == {(1, 1)}
        assert entries[0].incarnation == client.get(path).incarnation
        assert entries[0].updated_at == client.get(path).created_at
        assert [entry.path for entry in client.list(path, page_size=1)] == [entry.path for entry in entries]
        assert list(client.list(f"{path}/none")) == []

    def test_deleted_secrets(self, client: Client, path: str) -> None:
        """A list shows the newest version that is left, and deleted secrets only when they are asked for."""
        for name, count in (("partly", 3), ("deleted", 1), ("destroyed", 1)):
            _put(client, f"{path}/{name}", count)
        client.delete(f"{path}/partly", [3])
        client.delete(f"{path}/deleted")
        client.destroy(f"{path}/destroyed", None)
        shown = [(entry.path, entry.current_version, entry.newest_live_version) for entry in client.list(path)]
        assert shown == [(f"{path}/partly", 3, 2)]
        shown_too = [
            (entry.path, entry.current_version, entry.newest_live_version)
            for entry in client.list(path, include_deleted=True)
        ]
        assert shown_too == [(f"{path}/deleted", 1, 0), (f"{path}/partly", 3, 2)]

    def test_versions(self, client: Client, path: str) -> None:
        """Versions come newest first, in pages of any size."""
        _put(client, path, 5)
        client.destroy(path, [2])
        versions = list(client.versions(path))
        assert [version.number for version in versions] == [5, 4, 3, 2, 1]
        assert [version.number for version in versions if version.destroyed_at] == [2]
        assert list(client.versions(path, page_size=2)) == versions
        assert versions[0].created_at == client.get(path).created_at


class TestRefusals:
    """What is refused, and in which words."""

    def test_denied(self, client: Client) -> None:
        """The error says who needs what and where; the same whether the path exists or not."""
        with pytest.raises(shardhold.DeniedError) as caught:
            client.get("elsewhere/db")
        error = caught.value
        assert error.message == f"elsewhere/db: {SPIFFE_ID} is not allowed: a policy has to give it read on this path"
        assert (error.reason, error.hint) == ("DENIED", "")
        assert error.code is not None
        assert error.code.name == "PERMISSION_DENIED"

    @pytest.mark.parametrize(
        ("attempt", "permission"),
        [
            pytest.param(lambda client, path: client.put(path, {"n": b""}), "write", id="put"),
            pytest.param(lambda client, path: client.patch(path, {"n": b""}), "write", id="patch"),
            pytest.param(lambda client, path: client.undelete(path, [1]), "write", id="undelete"),
            pytest.param(lambda client, path: client.update_metadata(path, max_versions=1), "write", id="metadata"),
            pytest.param(lambda client, path: client.delete(path), "delete", id="delete"),
            pytest.param(lambda client, path: client.destroy(path, None), "delete", id="destroy"),
        ],
    )
    def test_permissions(self, client: Client, attempt: Try, permission: str) -> None:
        """Each call needs its permission; reading is allowed here, and finds nothing."""
        path = f"{READ_ONLY}/db"
        with pytest.raises(shardhold.DeniedError, match=f"a policy has to give it {permission} on this path"):
            attempt(client, path)
        for read in (lambda: client.get(path), lambda: list(client.versions(path))):
            with pytest.raises(shardhold.NotFoundError):
                read()
        assert list(client.list(READ_ONLY)) == []

    @pytest.mark.parametrize(
        ("attempt", "words"),
        [
            pytest.param(lambda client, path: client.get(""), "path: got nothing, want 1 to 16 segments", id="none"),
            pytest.param(lambda client, path: client.get("/a"), "path: got a '/' at an end", id="slash"),
            pytest.param(lambda client, path: client.get("a//b"), "path: segment 2 is '', want 1 to 128", id="empty"),
            pytest.param(lambda client, path: client.get("a/.."), "path: segment 2 is '..'", id="dots"),
            pytest.param(lambda client, path: client.get("a/ü"), "path: segment 2 is 'ü'", id="letter"),
            pytest.param(lambda client, path: client.get("a/" * 16 + "a"), "path: got 17 segments", id="segments"),
            pytest.param(lambda client, path: client.get("/".join(["a" * 128] * 4)), "at most 512 bytes", id="bytes"),
            pytest.param(lambda client, path: client.get("shardhold/x"), "which is reserved", id="reserved"),
            pytest.param(lambda client, path: list(client.list("a/")), "prefix: got a '/' at an end", id="prefix"),
            pytest.param(
                lambda client, path: list(client.list(page_size=1001)),
                "page_size: got 1001, want at most 1000",
                id="page",
            ),
            pytest.param(lambda client, path: client.put(path, {}), "fields: got none, want 1 to 64", id="no field"),
            pytest.param(
                lambda client, path: client.put(path, dict.fromkeys(map(str, range(65)), b"")),
                "fields: got 65, want 1 to 64",
                id="65 fields",
            ),
            pytest.param(
                lambda client, path: client.put(path, {"a b": b""}),
                "fields: got the name 'a b', want 1 to 64",
                id="name",
            ),
            pytest.param(
                lambda client, path: client.put(path, {"a": bytes(2**20 - 8)}),
                "fields: 1048577 bytes once encoded, want at most 1048576",
                id="size",
            ),
            pytest.param(
                lambda client, path: client.put(path, {"a": b""}, expected_incarnation=bytes(16)),
                "expected_incarnation: got one without expected_version, want both",
                id="incarnation alone",
            ),
            pytest.param(
                lambda client, path: client.put(path, {"a": b""}, expected_version=1, expected_incarnation=b"x"),
                "expected_incarnation: got 1 bytes, want 16 or none",
                id="incarnation",
            ),
            pytest.param(
                lambda client, path: client.patch(path), "fields: got none, and none in removed_fields", id="no patch"
            ),
            pytest.param(
                lambda client, path: client.patch(path, {"a": b""}, remove=["a"]),
                "which is in fields as well",
                id="both",
            ),
            pytest.param(
                lambda client, path: client.patch(path, {"a": b""}, expected_version=0),
                "expected_version: got 0, want 1 or more: what does not exist cannot be patched",
                id="patch of nothing",
            ),
            pytest.param(
                lambda client, path: client.delete(path, range(1, 102)), "versions: got 101, want at most 100", id="101"
            ),
            pytest.param(
                lambda client, path: client.get(path, version=2**63), "version: got 9223372036854775808", id="version"
            ),
            pytest.param(
                lambda client, path: client.update_metadata(path, max_versions=1_000_001),
                "max_versions: got 1000001, want at most 1000000",
                id="max_versions",
            ),
        ],
    )
    def test_arguments(self, client: Client, path: str, attempt: Try, words: str) -> None:
        """An argument that breaks a rule is refused in the words of the nexus."""
        with pytest.raises(shardhold.InvalidArgumentError) as caught:
            attempt(client, path)
        assert words in caught.value.message
        assert caught.value.reason == "INVALID_ARGUMENT"

    def test_largest(self, client: Client, path: str) -> None:
        """What is exactly at the limits is taken."""
        deep = f"{path}/{'/'.join('a' * 14)}"
        client.put(deep, {"a" * 64: bytes(2**20 - 8 - 64)})
        assert len(client.get(deep)["a" * 64]) == 2**20 - 72
        client.put(path, dict.fromkeys(map(str, range(64)), b""))
        assert len(client.get(path)) == 64


class TestStatus:
    """The state of the nexus."""

    def test_ready(self, client: Client) -> None:
        """It is ready, as everything else here needs it to be."""
        assert client.status(timeout=at_most(20)).state is State.READY
