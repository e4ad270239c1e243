"""The server side of mTLS, following SVID rotation.

Every client must present a certificate of the server's own trust domain: with the authorities of two domains in one
pool, either could mint the other's IDs. What the certificate says is checked on each call, by `common.server.peer`.
"""

import threading
from collections.abc import Callable
from typing import cast

import grpc
import structlog

from shardhold.identity import IdentitySource, IdentityUnavailableError, Svid

_logger = structlog.get_logger()


def server_credentials(identity: IdentitySource) -> grpc.ServerCredentials:
    """Make credentials that take key, chain and client roots from *identity* anew for each connection.

    Clients without a certificate of the trust domain fail in the handshake. While *identity* has no SVID, the last one
    stays in place: once it has expired, clients refuse it and `common.server.edge` serves no call.

    Raises:
        IdentityUnavailableError: There is no SVID now (the SDK's error).
    """
    follower = _Follower(identity)
    # grpcio's stubs do not know that the fetcher may return None.
    fetch_change = cast(Callable[[], grpc.ServerCertificateConfiguration], follower.fetch_change)
    return grpc.dynamic_ssl_server_credentials(follower.first, fetch_change, require_client_authentication=True)


class _Follower:
    """Answers gRPC's question before each handshake: is there a newer certificate?"""

    def __init__(self, identity: IdentitySource) -> None:
        self._identity = identity
        self._lock = threading.Lock()
        self._shown = identity.current()
        self._is_missing = False
        self.first = _configure(self._shown)

    def fetch_change(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the new configuration, None for no change. Called by gRPC on its own threads; must not raise."""
        with self._lock:
            try:
                svid = self._identity.current()
            except IdentityUnavailableError as exc:
                if not self._is_missing:
                    _logger.warning("no new svid, the last one stays", error=str(exc))
                self._is_missing = True
                return None
            self._is_missing = False
            if svid is self._shown or svid == self._shown:
                return None
            self._shown = svid
            _logger.info("svid rotated", spiffe_id=svid.spiffe_id, expires_at=svid.expires_at.isoformat())
            return _configure(svid)


def _configure(svid: Svid) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(svid.key_pem, svid.certificates_pem)], svid.bundle_pem)
