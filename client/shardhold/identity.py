"""Who this process is: sources of X.509-SVIDs that follow rotation.

A source holds the newest good SVID. `current` is cheap and never waits. Later failures (the agent gone, the entry
deleted, half-written files) are logged as warnings while the last good SVID is valid, and raised once it has expired.
"""

import logging
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from shardhold._errors import IdentityUnavailableError as IdentityUnavailableError  # part of this module's contract

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
    from spiffe import X509Source, X509Svid

__all__ = [
    "ENDPOINT_VARIABLE",
    "IdentitySource",
    "IdentityUnavailableError",
    "Svid",
    "SvidFiles",
    "WorkloadAPI",
]

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"

# Names that spiffe-helper writes.
SVID_FILE, KEY_FILE, BUNDLE_FILE = "svid.pem", "svid_key.pem", "bundle.pem"

_SCHEME = "spiffe://"
_POLL_S = 1.0  # how soon a closed source or a changed file is noticed
_REOPEN_S = 2.0  # that a later stream may take to give an SVID; until then the last one's age is not checked
_PATIENCE_S = 10.0  # between two streams that are opened because the SVID was not renewed in time

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Svid:
    """One X.509-SVID with its key and the authorities of its own trust domain, all as PEM; the leaf comes first."""

    spiffe_id: str
    trust_domain: str
    certificates_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)
    bundle_pem: bytes = field(repr=False)
    not_before: datetime
    expires_at: datetime

    @classmethod
    def parse(
        cls, certificates_pem: bytes, key_pem: bytes, bundle_pem: bytes, *, unnamed_authorities: bool = False
    ) -> "Svid":
        """Build an SVID from PEM, and check that the parts belong together.

        Authorities that name another trust domain are left out. One that names none may be of any, unless the caller
        knows that the bundle is of one trust domain alone: *unnamed_authorities*.

        Raises:
            ValueError: Something does not parse, the leaf does not have exactly one URI SAN with a SPIFFE ID, the key
                is another's, an authority names no trust domain, or none of the bundle issued it.
        """
        from cryptography import x509
        from cryptography.exceptions import UnsupportedAlgorithm

        malformed = (x509.DuplicateExtension, x509.InvalidVersion, x509.UnsupportedGeneralNameType)
        try:
            return cls._parse(certificates_pem, key_pem, bundle_pem, unnamed_authorities)
        except (UnsupportedAlgorithm, *malformed) as exc:
            raise ValueError("a certificate is malformed, or a key of an unknown kind") from exc

    @classmethod
    def _parse(cls, certificates_pem: bytes, key_pem: bytes, bundle_pem: bytes, unnamed_authorities: bool) -> "Svid":
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

        chain = _parse_certificates("SVID", certificates_pem)
        leaf = chain[0]
        uris = _read_uris(leaf)
        if len(uris) != 1 or not uris[0].startswith(_SCHEME):
            raise ValueError(f"SVID has the URI SANs {uris}, want exactly one SPIFFE ID")
        trust_domain = _name_trust_domain(uris[0])
        try:
            key = load_pem_private_key(key_pem, password=None)
        except TypeError as exc:
            raise ValueError("the private key is encrypted") from exc
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
            raise ValueError("the private key is not the SVID's")
        bundle = []
        for authority in _parse_certificates("bundle", bundle_pem):
            named = {_name_trust_domain(uri) for uri in _read_uris(authority) if uri.startswith(_SCHEME)}
            if not named and not unnamed_authorities:
                raise ValueError("an authority of the bundle names no trust domain: it may be of another one")
            # An authority of another trust domain could mint our names if it were in the same pool.
            if named <= {trust_domain}:
                bundle.append(authority)
        if not bundle:
            raise ValueError(f"the bundle has no authority of {trust_domain}")
        if not any(_is_issued(certificate, authority) for certificate in chain for authority in bundle):
            raise ValueError("no authority of the bundle issued the SVID")
        return cls(
            spiffe_id=uris[0],
            trust_domain=trust_domain,
            certificates_pem=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain),
            key_pem=key_pem,
            bundle_pem=b"".join(certificate.public_bytes(Encoding.PEM) for certificate in bundle),
            not_before=leaf.not_valid_before_utc,
            expires_at=leaf.not_valid_after_utc,
        )

    def leaf(self) -> "x509.Certificate":
        """Return the SVID's own certificate."""
        return self.chain()[0]

    def chain(self) -> "tuple[x509.Certificate, ...]":
        """Return the leaf and its intermediates."""
        return _parse_cached(self.certificates_pem)

    def bundle(self) -> "tuple[x509.Certificate, ...]":
        """Return the authorities of the SVID's own trust domain."""
        return _parse_cached(self.bundle_pem)

    def private_key(self) -> "PrivateKeyTypes":
        """Return the SVID's private key."""
        cached: PrivateKeyTypes | None = self.__dict__.get("_private_key")
        if cached is None:
            from cryptography.hazmat.primitives.serialization import load_pem_private_key

            cached = self.__dict__["_private_key"] = load_pem_private_key(self.key_pem, password=None)
        return cached


class IdentitySource(Protocol):
    """Where a process gets its SVID from. Thread-safe."""

    def current(self) -> Svid:
        """Return the newest SVID, without waiting.

        Raises:
            IdentityUnavailableError: There is none, or it has expired.
        """
        ...

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call *callback*, from any thread, after each new SVID. It must return quickly."""
        ...

    def close(self) -> None:
        """Stop following rotation; `current` raises from now on."""
        ...


class WorkloadAPI:
    """SVIDs from a SPIFFE Workload API over a unix socket, rotated by its pushes.

    Args:
        socket: `unix:/path` or `/path`; None: SPIFFE_ENDPOINT_SOCKET.
        select: Takes the offered SPIFFE IDs and returns the one to use; None: the first, as the standard says.
        timeout: Seconds to wait for the first SVID.

    Raises:
        IdentityUnavailableError: The socket is not named or does not exist, or gave no SVID in time.
    """

    def __init__(
        self, socket: str | None = None, *, select: Callable[[Sequence[str]], str] | None = None, timeout: float = 10.0
    ) -> None:
        self._socket = _find_socket(socket)
        self._select = select
        self._refusal: Exception | None = None
        self._streamer: threading.Thread | None = None  # spiffe's, of the newest source
        self._timeout = timeout
        self._held = _HeldSvid(f"the Workload API at {self._socket}")
        self._update_lock = threading.Lock()
        self._stop = threading.Event()
        self._source = self._open(timeout)
        self._watcher = threading.Thread(target=self._watch, name="shardhold-identity", daemon=True)
        self._watcher.start()

    def current(self) -> Svid:
        """Return the newest SVID, without waiting; `IdentityUnavailableError` when there is none or it has expired."""
        return self._held.current()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each new SVID."""
        self._held.subscribe(callback)

    def close(self) -> None:
        """Disconnect from the Workload API. Idempotent."""
        self._stop.set()
        self._held.close()
        self._source.close()
        self._watcher.join(timeout=self._timeout)
        # At its end the interpreter stops this thread anywhere, and then waits for ever for a gRPC lock that it held.
        if self._streamer is not None and self._streamer is not threading.current_thread():
            self._streamer.join(timeout=self._timeout)

    def _open(self, timeout: float) -> "X509Source":
        from spiffe import X509Source
        from spiffe.errors import PySpiffeError

        self._refusal = None
        try:
            source = X509Source(socket_path=f"unix:{self._socket}", timeout_in_seconds=timeout, svid_picker=self._pick)
        except PySpiffeError as exc:
            if self._refusal is not None:
                raise IdentityUnavailableError(str(self._refusal)) from self._refusal
            raise IdentityUnavailableError(
                f"no SVID from the Workload API at {self._socket}, waited at most {timeout:g} s: {exc}",
                hint="is this process registered there, and does the agent run?",
            ) from exc
        try:
            self._take(source)
        except IdentityUnavailableError:
            source.close()
            raise
        source.subscribe_for_updates(lambda: self._follow(source))
        self._follow(source)  # catches what came between the first take and the subscription
        return source

    def _pick(self, svids: "list[X509Svid]") -> "X509Svid":
        self._streamer = threading.current_thread()
        if self._select is None:
            return svids[0]
        offered = {str(svid.spiffe_id): svid for svid in svids}
        try:
            chosen = self._select(list(offered))
            if chosen not in offered:
                raise IdentityUnavailableError(f"the Workload API offers {', '.join(offered)}, not {chosen}")
        except Exception as exc:
            self._refusal = exc  # X509Source keeps only its text
            raise
        return offered[chosen]

    def _take(self, source: "X509Source") -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
        from spiffe.errors import PySpiffeError

        with self._update_lock:  # so that an older context never replaces a newer one
            try:
                context = source.get_x509_context()
            except PySpiffeError as exc:
                raise IdentityUnavailableError(f"the Workload API at {self._socket} closed the stream: {exc}") from exc
            svid = context.default_svid
            bundle = context.x509_bundle_set.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
            authorities = sorted(
                authority.public_bytes(Encoding.PEM) for authority in (bundle.x509_authorities if bundle else ())
            )
            try:
                self._held.replace(
                    Svid.parse(
                        b"".join(certificate.public_bytes(Encoding.PEM) for certificate in svid.cert_chain),
                        svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
                        b"".join(authorities),
                        unnamed_authorities=True,  # the Workload API keeps the bundles of trust domains apart
                    )
                )
            except ValueError as exc:
                raise IdentityUnavailableError(f"unusable SVID from the Workload API at {self._socket}: {exc}") from exc

    def _follow(self, source: "X509Source") -> None:
        try:
            self._take(source)
        except IdentityUnavailableError as exc:
            _logger.warning("the updated SVID is not usable, the previous one stays: %s", exc)

    def _watch(self) -> None:
        complaint = ""
        patient_until = 0.0
        while not self._stop.wait(_POLL_S):
            self._held.check_age()
            if self._held.is_overdue() and monotonic() >= patient_until:
                # After a failure spiffe and its gRPC channel retry ever more rarely, up to minutes apart; after about
                # 1,000 tries, 85 minutes, spiffe's thread dies of an overflow without closing the source.
                self._source.close()
            if not self._source.is_closed():
                complaint = ""
                continue
            # An error or an empty update closes the source, which then notifies no subscriber.
            try:
                self._source = self._open(min(self._timeout, _REOPEN_S))
            except IdentityUnavailableError as exc:
                if str(exc) != complaint:
                    _logger.warning("the Workload API gave no SVID, trying again until it does: %s", exc)
                complaint = str(exc)
            else:
                patient_until = monotonic() + _PATIENCE_S
                _logger.warning("the stream of SVIDs from the Workload API had ended or said nothing; it is open again")
                if self._stop.is_set():
                    self._source.close()


class SvidFiles:
    """SVIDs from `svid.pem`, `svid_key.pem` and `bundle.pem` in one directory, followed as they are replaced.

    A set that is half-written or does not belong together is ignored until it is complete; the last good one serves
    meanwhile. *unnamed_authorities* is as in `Svid.parse`.

    Raises:
        IdentityUnavailableError: There is no usable set at the start.
    """

    def __init__(self, directory: str | os.PathLike[str], *, unnamed_authorities: bool = False) -> None:
        self._directory = Path(directory)
        self._unnamed_authorities = unnamed_authorities
        self._held = _HeldSvid(str(self._directory))
        try:
            self._warn_of_readers()
            self._loaded = self._load()
        except (OSError, ValueError) as exc:
            raise IdentityUnavailableError(f"no usable SVID in {self._directory}: {exc}") from exc
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="shardhold-identity", daemon=True)
        self._watcher.start()

    def current(self) -> Svid:
        """Return the newest good SVID, without waiting; `IdentityUnavailableError` when it has expired."""
        return self._held.current()

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each new SVID."""
        self._held.subscribe(callback)

    def close(self) -> None:
        """Stop watching. Idempotent."""
        self._stop.set()
        self._held.close()
        self._watcher.join(timeout=_POLL_S)

    def _mark(self) -> tuple[tuple[int, int, int], ...]:
        states = ((self._directory / name).stat() for name in (SVID_FILE, KEY_FILE, BUNDLE_FILE))
        return tuple((state.st_ino, state.st_size, state.st_mtime_ns) for state in states)

    def _load(self) -> tuple[tuple[int, int, int], ...]:
        mark = self._mark()
        parts = [(self._directory / name).read_bytes() for name in (SVID_FILE, KEY_FILE, BUNDLE_FILE)]
        if self._mark() != mark:
            raise ValueError("the files changed while they were read")
        self._held.replace(Svid.parse(*parts, unnamed_authorities=self._unnamed_authorities))
        return mark

    def _warn_of_readers(self) -> None:
        mode = stat.S_IMODE((self._directory / KEY_FILE).stat().st_mode)
        if mode & 0o077:
            _logger.warning(
                "%s has mode %04o, want 0600: others can take this identity", self._directory / KEY_FILE, mode
            )

    def _watch(self) -> None:
        complaint = ""
        while not self._stop.wait(_POLL_S):
            self._held.check_age()
            try:
                if self._mark() != self._loaded:
                    self._loaded = self._load()
                complaint = ""
            except (OSError, ValueError) as exc:
                if str(exc) != complaint:
                    _logger.warning("no usable SVID in %s, the last good one stays: %s", self._directory, exc)
                complaint = str(exc)


class _HeldSvid:
    """The newest good SVID of a source, and the subscribers to the next."""

    def __init__(self, origin: str, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._origin = origin
        self._now = now
        self._lock = threading.Lock()
        self._svid: Svid | None = None
        self._is_closed = False
        self._worry_at = datetime.max.replace(tzinfo=UTC)
        self._callbacks: list[Callable[[], None]] = []
        self._complaint: tuple[Svid, str] | None = None

    def current(self) -> Svid:
        svid = self._svid
        if svid is None:
            raise IdentityUnavailableError(f"no SVID from {self._origin}: it was closed")
        now = self._now()
        if svid.expires_at <= now:
            raise IdentityUnavailableError(
                f"the SVID of {svid.spiffe_id} expired at {svid.expires_at:%Y-%m-%dT%H:%M:%SZ}",
                hint=f"{self._origin} has given no newer one; by this machine's clock it is {now:%Y-%m-%dT%H:%M:%SZ}",
            )
        return svid

    def replace(self, svid: Svid) -> None:
        with self._lock:
            if self._is_closed or svid == self._svid:
                return
            self._svid = svid
            self._worry_at = svid.expires_at - (svid.expires_at - self._now()) / 4
            callbacks = list(self._callbacks)
        for callback in callbacks:
            try:
                callback()
            except Exception:  # a subscriber's fault must not stop rotation for the others
                _logger.exception("a subscriber of %s failed", self._origin)

    def subscribe(self, callback: Callable[[], None]) -> None:
        with self._lock:
            self._callbacks.append(callback)

    def check_age(self) -> None:
        """Warn once when three quarters of the SVID's remaining life passed without a renewal, and once at its end."""
        svid = self._svid
        if svid is None:
            return
        now = self._now()
        stage = "has expired" if svid.expires_at <= now else "will soon expire" if self._worry_at <= now else ""
        if stage and self._complaint != (svid, stage):
            self._complaint = (svid, stage)
            _logger.warning(
                "the SVID of %s %s (%s) and %s gave no newer one", svid.spiffe_id, stage, svid.expires_at, self._origin
            )

    def is_overdue(self) -> bool:
        """Return whether a newer SVID should have come by now: three quarters of the time have passed."""
        return self._worry_at <= self._now()

    def close(self) -> None:
        with self._lock:
            self._svid, self._is_closed = None, True
            self._callbacks.clear()


def _find_socket(socket: str | None) -> str:
    named = socket or os.environ.get(ENDPOINT_VARIABLE, "")
    if not named:
        raise IdentityUnavailableError(
            f"no identity: {ENDPOINT_VARIABLE} is not set",
            hint="set it to the Workload API's socket, or use SVID files",
        )
    scheme, colon, rest = named.partition(":")
    path = rest if colon and scheme == "unix" else named
    if not path.startswith("/"):
        raise IdentityUnavailableError(f"{ENDPOINT_VARIABLE} is {named!r}, want unix:/path")
    path = "/" + path.lstrip("/")
    try:
        is_socket = stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError as exc:
        raise IdentityUnavailableError(
            f"no Workload API at {path}: {exc.strerror}", hint="does the SPIRE agent, or the development provider, run?"
        ) from exc
    if not is_socket:
        raise IdentityUnavailableError(f"no Workload API at {path}: not a unix socket")
    return path


def _parse_certificates(what: str, pem: bytes) -> "tuple[x509.Certificate, ...]":
    certificates = _parse_cached(pem)
    begun = pem.count(b"-----BEGIN CERTIFICATE-----")
    if len(certificates) != begun:
        raise ValueError(f"{what} has {begun} certificates, {len(certificates)} of them whole")
    return certificates


@lru_cache(maxsize=32)
def _parse_cached(pem: bytes) -> "tuple[x509.Certificate, ...]":
    from cryptography import x509

    return tuple(x509.load_pem_x509_certificates(pem))


def _read_uris(certificate: "x509.Certificate") -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _is_issued(certificate: "x509.Certificate", authority: "x509.Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, TypeError, UnsupportedAlgorithm, ValueError):
        return False
    return True


def _name_trust_domain(spiffe_id: str) -> str:
    return spiffe_id.removeprefix(_SCHEME).partition("/")[0]
