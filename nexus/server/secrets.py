"""SecretService: message → vault → message."""

from common.server.edge import Call
from nexus.server.auth import Authenticator
from nexus.server.moments import to_timestamp
from nexus.store.protocol import HistoryRow, VersionState
from nexus.vault.expected import Expected
from nexus.vault.secrets import Vault
from shardhold.v1 import secrets_pb2 as pb

_STATES = {
    VersionState.LIVE: pb.VERSION_STATE_LIVE,
    VersionState.DELETED: pb.VERSION_STATE_DELETED,
    VersionState.DESTROYED: pb.VERSION_STATE_DESTROYED,
}


class SecretHandlers:
    def __init__(self, vault: Vault, authenticator: Authenticator) -> None:
        self._vault = vault
        self._identify = authenticator.identify

    def put_secret(self, call: Call, request: pb.PutSecretRequest) -> pb.PutSecretResponse:
        made = self._vault.put(
            self._identify(call), request.path, dict(request.fields), _expected(request), request.request_id
        )
        return pb.PutSecretResponse(version=made.versions[0], incarnation=made.incarnation, revision=made.revision)

    def get_secret(self, call: Call, request: pb.GetSecretRequest) -> pb.GetSecretResponse:
        secret = self._vault.get(self._identify(call), request.path, request.version)
        return pb.GetSecretResponse(
            path=secret.path,
            version=secret.version,
            incarnation=secret.incarnation,
            fields=secret.fields,
            created_at=to_timestamp(secret.created_at),
        )

    def list_secrets(self, call: Call, request: pb.ListSecretsRequest) -> pb.ListSecretsResponse:
        rows, next_page = self._vault.list(
            self._identify(call),
            request.prefix,
            after=request.page_token,
            limit=request.page_size,
            include_deleted=request.include_deleted,
            is_wanted=call.is_wanted,
        )
        entries = (
            pb.SecretEntry(
                path=row.path,
                current_version=row.current_version,
                incarnation=row.incarnation,
                updated_at=to_timestamp(row.updated_at),
                newest_live_version=row.newest_live_version,
            )
            for row in rows
        )
        return pb.ListSecretsResponse(secrets=entries, next_page_token=next_page)

    def delete_secret(self, call: Call, request: pb.DeleteSecretRequest) -> pb.DeleteSecretResponse:
        made = self._vault.delete(
            self._identify(call), request.path, request.versions, _expected(request), request.request_id
        )
        return pb.DeleteSecretResponse(versions=made.versions, revision=made.revision)

    def patch_secret(self, call: Call, request: pb.PatchSecretRequest) -> pb.PatchSecretResponse:
        made = self._vault.patch(
            self._identify(call),
            request.path,
            dict(request.fields),
            request.removed_fields,
            _expected(request),
            request.request_id,
        )
        return pb.PatchSecretResponse(version=made.versions[0], incarnation=made.incarnation, revision=made.revision)

    def list_versions(self, call: Call, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        page = self._vault.list_versions(
            self._identify(call), request.path, after=request.page_token, limit=request.page_size
        )
        return pb.ListVersionsResponse(
            incarnation=page.incarnation,
            current_version=page.current_version,
            max_versions=page.max_versions,
            max_versions_is_own=page.max_versions_is_own,
            versions=map(_to_entry, page.versions),
            next_page_token=page.next_token,
        )

    def undelete_secret(self, call: Call, request: pb.UndeleteSecretRequest) -> pb.UndeleteSecretResponse:
        made = self._vault.undelete(self._identify(call), request.path, request.versions, request.request_id)
        return pb.UndeleteSecretResponse(versions=made.versions, revision=made.revision)

    def destroy_secret(self, call: Call, request: pb.DestroySecretRequest) -> pb.DestroySecretResponse:
        made = self._vault.destroy(
            self._identify(call), request.path, request.versions, _expected(request), request.request_id
        )
        return pb.DestroySecretResponse(versions=made.versions, revision=made.revision)

    def update_secret_metadata(
        self, call: Call, request: pb.UpdateSecretMetadataRequest
    ) -> pb.UpdateSecretMetadataResponse:
        max_versions = request.max_versions if request.HasField("max_versions") else None
        made = self._vault.update_metadata(self._identify(call), request.path, max_versions, request.request_id)
        return pb.UpdateSecretMetadataResponse(revision=made.revision)


def _to_entry(row: HistoryRow) -> pb.VersionEntry:
    return pb.VersionEntry(
        version=row.version,
        state=_STATES[row.state],
        created_at=to_timestamp(row.created_at),
        destroyed_at=to_timestamp(row.destroyed_at) if row.destroyed_at else None,
    )


def _expected(
    request: pb.PutSecretRequest | pb.PatchSecretRequest | pb.DeleteSecretRequest | pb.DestroySecretRequest,
) -> Expected:
    version = request.expected_version if request.HasField("expected_version") else None
    return Expected(version, request.expected_incarnation)
