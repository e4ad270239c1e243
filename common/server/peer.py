"""Who the peer of a call is, by the certificate of its connection. Rules, all of which a caller must meet:

1. TLS 1.3.
2. gRPC found exactly one URI SAN, and it is a well-formed SPIFFE ID (`peer_spiffe_id`; never `peer_identities`, which
   mixes DNS names in). The certificate, parsed here, says the same.
3. The ID is in the server's own trust domain and has a path.
4. The certificate is a leaf: it can sign no other certificate.
5. It is valid now: gRPC checks the time only in the handshake, and a connection may outlive its certificate.

The chain itself was verified in the handshake, against the bundle of the server's trust domain alone.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509

from common.errors import UnauthenticatedError

_MAX_ID_BYTES = 2048  # SPIFFE-ID, section 2.3
_MAX_PEERS = 4096  # parsed certificates kept, about 300 bytes each besides their PEM
_SPIFFE_ID = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._-]+)+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class _Certificate:
    spiffe_id: str
    not_before: float  # seconds since the epoch
    expires_at: float


def find_trust_domain(spiffe_id: str) -> str | None:
    """Return the trust domain of a well-formed SPIFFE ID, which has a path; None when *spiffe_id* is none."""
    found = _SPIFFE_ID.fullmatch(spiffe_id) if len(spiffe_id) <= _MAX_ID_BYTES else None
    return found and found[1]


def is_member(spiffe_id: str, trust_domain: str) -> bool:
    """Whether *spiffe_id* is a well-formed SPIFFE ID of *trust_domain*."""
    return find_trust_domain(spiffe_id) == trust_domain


class PeerCheck:
    """Finds the caller of each call. Thread-safe; a certificate is parsed once and its dates are checked every time.

    Args:
        trust_domain: The only domain whose IDs are accepted.
        admit: Refuses a peer by its SPIFFE ID, with an error of its own; None: takes everybody.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        trust_domain: str,
        *,
        admit: Callable[[str], None] | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._prefix = f"spiffe://{trust_domain}/"
        self._admit = admit
        self._now = now
        self._parse = lru_cache(maxsize=_MAX_PEERS)(_parse_certificate)

    def identify(self, context: Mapping[str, Sequence[bytes]]) -> str:
        """Return the SPIFFE ID of the peer whose authentication context this is.

        Raises:
            UnauthenticatedError: The peer breaks a rule; the message says which.
            DeniedError: The peer is not admitted.
        """
        version = context.get("ssl_tls_version")
        if not version or version[0] != b"TLSv1.3":
            raise UnauthenticatedError("the connection is not TLS 1.3")
        ids, pem = context.get("peer_spiffe_id"), context.get("x509_pem_cert")
        if not ids or not pem or len(ids) != 1 or len(pem) != 1:
            raise UnauthenticatedError("the certificate has not exactly one URI SAN with a SPIFFE ID")
        certificate = self._parse(pem[0])
        spiffe_id = certificate.spiffe_id
        if spiffe_id.encode() != ids[0]:
            raise UnauthenticatedError("the certificate and its connection name different peers")
        if not spiffe_id.startswith(self._prefix):
            raise UnauthenticatedError(f"{spiffe_id} is of another trust domain, want {self._prefix}…")
        if not certificate.not_before <= self._now() < certificate.expires_at:
            raise UnauthenticatedError(f"the certificate of {spiffe_id} is not valid now")
        if self._admit is not None:
            self._admit(spiffe_id)
        return spiffe_id


def _parse_certificate(pem: bytes) -> _Certificate:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extensions = certificate.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (
        ValueError,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as exc:
        raise UnauthenticatedError("the certificate does not parse, or has no SAN") from exc
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1 or len(uris[0]) > _MAX_ID_BYTES or not _SPIFFE_ID.fullmatch(uris[0]):
        raise UnauthenticatedError("the certificate has not exactly one URI SAN with a SPIFFE ID")
    if _can_sign(extensions):
        raise UnauthenticatedError(f"the certificate of {uris[0]} can sign others, want a leaf")
    return _Certificate(
        spiffe_id=uris[0],
        not_before=certificate.not_valid_before_utc.timestamp(),
        expires_at=certificate.not_valid_after_utc.timestamp(),
    )


def _can_sign(extensions: x509.Extensions) -> bool:
    for extension in extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                return True
            case x509.KeyUsage(key_cert_sign=True) | x509.KeyUsage(crl_sign=True):
                return True
    return False
