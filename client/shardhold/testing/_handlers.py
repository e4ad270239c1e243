"""The calls that a fake nexus answers: message → vault → message. Not thread-safe.

Rules, as in a nexus:
1. Arguments are checked first, then whether the call is admitted, and only then is anything read.
2. A change that is repeated under its request id changes nothing, and gets what the first one made.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar, cast

from google.protobuf.timestamp_pb2 import Timestamp

from shardhold._results import VersionState
from shardhold.testing import _rules as rules
from shardhold.testing._gate import Gate
from shardhold.testing._refusals import invalid
from shardhold.testing._rules import Expected
from shardhold.testing._vault import FakeVault, KeptSecret, KeptVersion
from shardhold.v1 import cluster_pb2, secrets_pb2

VERSION = "fake"

_Response = TypeVar("_Response")

_STATES = {
    VersionState.LIVE: secrets_pb2.VERSION_STATE_LIVE,
    VersionState.DELETED: secrets_pb2.VERSION_STATE_DELETED,
    VersionState.DESTROYED: secrets_pb2.VERSION_STATE_DESTROYED,
}


class Handlers:
    """Every call of the SDK."""

    def __init__(self, vault: FakeVault, gate: Gate) -> None:
        self._vault = vault
        self._gate = gate
        self._revision = 0
        self._made: dict[bytes, tuple[object, Any]] = {}  # by request id: what was asked, and the answer
        self._handlers: dict[str, Callable[[Any], Any]] = {
            "PutSecret": self._put,
            "PatchSecret": self._patch,
            "GetSecret": self._get,
            "ListSecrets": self._list,
            "ListVersions": self._list_versions,
            "DeleteSecret": self._delete,
            "UndeleteSecret": self._undelete,
            "DestroySecret": self._destroy,
            "UpdateSecretMetadata": self._update_metadata,
            "GetStatus": self._get_status,
        }

    def answer(self, rpc: str, request: Any) -> Any:
        """Answer one call, or raise what the client is to raise."""
        return self._handlers[rpc](request)

    def _get_status(self, request: cluster_pb2.GetStatusRequest) -> cluster_pb2.GetStatusResponse:
        state = cluster_pb2.STATE_SEALED if self._gate.is_sealed else cluster_pb2.STATE_READY
        return cluster_pb2.GetStatusResponse(state=state, version=VERSION)

    def _put(self, request: secrets_pb2.PutSecretRequest) -> secrets_pb2.PutSecretResponse:
        fields, expected = dict(request.fields), _expected(request)
        rules.check_path(request.path)
        rules.check_fields(fields)
        expected.check()

        def put() -> secrets_pb2.PutSecretResponse:
            secret = self._vault.put(request.path, fields, expected)
            return secrets_pb2.PutSecretResponse(
                version=secret.newest.number, incarnation=secret.incarnation, revision=self._revision + 1
            )

        return self._change("write", request, put)

    def _patch(self, request: secrets_pb2.PatchSecretRequest) -> secrets_pb2.PatchSecretResponse:
        fields, removed, expected = dict(request.fields), list(request.removed_fields), _expected(request)
        rules.check_path(request.path)
        rules.check_patch(fields, removed)
        expected.check(of_existing="patched")

        def patch() -> secrets_pb2.PatchSecretResponse:
            secret = self._vault.patch(request.path, fields, removed, expected)
            return secrets_pb2.PatchSecretResponse(
                version=secret.newest.number, incarnation=secret.incarnation, revision=self._revision + 1
            )

        return self._change("write", request, patch)

    def _get(self, request: secrets_pb2.GetSecretRequest) -> secrets_pb2.GetSecretResponse:
        rules.check_path(request.path)
        rules.check_version("version", request.version)
        self._gate.admit("read", request.path)
        secret, version = self._vault.get(request.path, request.version)
        return secrets_pb2.GetSecretResponse(
            path=request.path,
            version=version.number,
            incarnation=secret.incarnation,
            fields=version.fields,
            created_at=_to_timestamp(version.created_at),
        )

    def _list(self, request: secrets_pb2.ListSecretsRequest) -> secrets_pb2.ListSecretsResponse:
        rules.check_prefix(request.prefix)
        size = rules.check_page_size(request.page_size)
        self._gate.admit_list(request.prefix)
        shown = (
            secret
            for secret in self._vault.walk(request.prefix, include_deleted=request.include_deleted)
            if secret.path > request.page_token and self._gate.may_list(secret.path)
        )
        page, is_last = _take(list(islice(shown, size + 1)), size)
        return secrets_pb2.ListSecretsResponse(
            secrets=map(_to_entry, page), next_page_token="" if is_last else page[-1].path
        )

    def _list_versions(self, request: secrets_pb2.ListVersionsRequest) -> secrets_pb2.ListVersionsResponse:
        rules.check_path(request.path)
        size = rules.check_page_size(request.page_size)
        self._gate.admit("read", request.path)
        secret = self._vault.find(request.path)
        before, _, incarnation = request.page_token.partition("-")
        if incarnation and incarnation != secret.incarnation.hex():
            raise invalid("page_token: the secret was created anew since, want the first page again")
        left = [version for version in reversed(secret.versions) if not before or version.number < int(before)]
        page, is_last = _take(left, size)
        return secrets_pb2.ListVersionsResponse(
            incarnation=secret.incarnation,
            current_version=secret.newest.number,
            max_versions=self._vault.find_limit(secret),
            max_versions_is_own=bool(secret.max_versions),
            versions=map(_to_version, page),
            next_page_token="" if is_last else f"{page[-1].number}-{secret.incarnation.hex()}",
        )

    def _delete(self, request: secrets_pb2.DeleteSecretRequest) -> secrets_pb2.DeleteSecretResponse:
        expected = _expected(request)
        rules.check_path(request.path)
        expected.check(of_existing="deleted")
        wanted = rules.sort_versions(request.versions)

        def delete() -> secrets_pb2.DeleteSecretResponse:
            versions = self._vault.delete(request.path, wanted, expected)
            return secrets_pb2.DeleteSecretResponse(versions=versions, revision=self._revision + 1)

        return self._change("delete", request, delete)

    def _undelete(self, request: secrets_pb2.UndeleteSecretRequest) -> secrets_pb2.UndeleteSecretResponse:
        rules.check_path(request.path)
        wanted = rules.sort_versions(request.versions)

        def undelete() -> secrets_pb2.UndeleteSecretResponse:
            versions = self._vault.undelete(request.path, wanted)
            return secrets_pb2.UndeleteSecretResponse(versions=versions, revision=self._revision + 1)

        return self._change("write", request, undelete)

    def _destroy(self, request: secrets_pb2.DestroySecretRequest) -> secrets_pb2.DestroySecretResponse:
        expected = _expected(request)
        rules.check_path(request.path)
        expected.check(of_existing="destroyed")
        wanted = rules.sort_versions(request.versions)

        def destroy() -> secrets_pb2.DestroySecretResponse:
            versions = self._vault.destroy(request.path, wanted, expected)
            return secrets_pb2.DestroySecretResponse(versions=versions, revision=self._revision + 1)

        return self._change("delete", request, destroy)

    def _update_metadata(
        self, request: secrets_pb2.UpdateSecretMetadataRequest
    ) -> secrets_pb2.UpdateSecretMetadataResponse:
        rules.check_path(request.path)
        rules.check_max_versions(request.max_versions)

        def update() -> secrets_pb2.UpdateSecretMetadataResponse:
            self._vault.keep_at_most(request.path, request.max_versions)
            return secrets_pb2.UpdateSecretMetadataResponse(revision=self._revision + 1)

        return self._change("write", request, update)

    def _change(self, permission: str, request: Any, make: Callable[[], _Response]) -> _Response:
        self._gate.admit(permission, request.path)
        asked = _describe(request)
        if request.request_id in self._made:  # rule 2
            asked_before, made = self._made[request.request_id]
            if asked_before != asked:
                raise invalid("request_id: was used for another request, want a new one")
            return cast(_Response, made)
        answer = make()
        self._revision += 1
        self._made[request.request_id] = asked, answer
        return answer


def _describe(request: Any) -> object:
    """Return what a request asks for, to compare it with another: lists in any order, each item once."""

    def describe(value: Any) -> object:
        if hasattr(value, "items"):
            return dict(value)
        return value if isinstance(value, str | bytes | int) else sorted(set(value))

    return type(request), {field.name: describe(value) for field, value in request.ListFields()}


def _expected(request: Any) -> Expected:
    version = request.expected_version if request.HasField("expected_version") else None
    return Expected(version, request.expected_incarnation)


def _take(items: Sequence[Any], size: int) -> tuple[Sequence[Any], bool]:
    return items[:size], len(items) <= size


def _to_entry(secret: KeptSecret) -> secrets_pb2.SecretEntry:
    return secrets_pb2.SecretEntry(
        path=secret.path,
        current_version=secret.newest.number,
        incarnation=secret.incarnation,
        updated_at=_to_timestamp(secret.newest.created_at),
        newest_live_version=max(secret.live, default=0),
    )


def _to_version(version: KeptVersion) -> secrets_pb2.VersionEntry:
    return secrets_pb2.VersionEntry(
        version=version.number,
        state=_STATES[version.state],
        created_at=_to_timestamp(version.created_at),
        destroyed_at=_to_timestamp(version.destroyed_at) if version.destroyed_at else None,
    )


def _to_timestamp(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp
