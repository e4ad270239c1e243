"""SecretService: message → vault → message."""

from common.server.edge import Call
from nexus.server.auth import Authenticator
from nexus.server.moments import to_timestamp
from nexus.vault.secrets import Expected, Vault
from shardhold.v1 import secrets_pb2 as pb


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
            is_wanted=call.is_wanted,
        )
        entries = (
            pb.SecretEntry(
                path=row.path,
                current_version=row.current_version,
                incarnation=row.incarnation,
                updated_at=to_timestamp(row.updated_at),
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
        raise NotImplementedError

    def list_versions(self, call: Call, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        raise NotImplementedError

    def undelete_secret(self, call: Call, request: pb.UndeleteSecretRequest) -> pb.UndeleteSecretResponse:
        raise NotImplementedError

    def destroy_secret(self, call: Call, request: pb.DestroySecretRequest) -> pb.DestroySecretResponse:
        raise NotImplementedError

    def update_secret_metadata(
        self, call: Call, request: pb.UpdateSecretMetadataRequest
    ) -> pb.UpdateSecretMetadataResponse:
        raise NotImplementedError


def _expected(request: pb.PutSecretRequest | pb.DeleteSecretRequest) -> Expected:
    version = request.expected_version if request.HasField("expected_version") else None
    return Expected(version, request.expected_incarnation)
