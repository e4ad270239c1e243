"""The development identity provider: a SPIFFE Workload API with one unix socket for each identity.

Anyone who can open a socket gets its identity: the folder's permissions are the attestation. For development only.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Protocol

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from spiffe._proto import workload_pb2, workload_pb2_grpc

from common.errors import ConfigError
from pilot.dev.ca import check_lifetime
from shardhold.identity import Svid

LONGEST_SOCKET_PATH = 107  # bytes; sockaddr_un holds 108 with the final zero, on Linux
_STREAMS = 128  # open streams for each identity; each holds a thread
_HEADER = ("workload.spiffe.io", "true")


class Issuer(Protocol):
    """Whoever signs the SVIDs of one trust domain."""

    @property
    def trust_domain(self) -> str: ...

    def issue(self, spiffe_path: str, *, dns: str | None = None, lifetime: timedelta = timedelta(hours=1)) -> Svid:
        """Make a key and an SVID for it, which lives for *lifetime*."""
        ...


class IdentityProvider:
    """Hands out SVIDs of *ca* over unix sockets in *directory* and pushes new ones at half their life. Thread-safe."""

    def __init__(self, directory: Path, ca: Issuer, *, lifetime: timedelta = timedelta(hours=1)) -> None:
        """Begin to rotate; sockets come with `add`. *directory* is created, mode 0700, if it does not exist.

        Raises:
            ConfigError: The directory or the lifetime is not usable.
        """
        check_lifetime(lifetime)
        if any(sign in str(directory) for sign in "%?#"):
            raise ConfigError(
                f"socket directory: got {str(directory)!r}, want a path without % ? #, which socket addresses read"
            )
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory.absolute()
        self._ca = ca
        self._lifetime = lifetime
        self._lock = threading.Lock()
        self._endpoints: dict[tuple[str, str | None], _Endpoint] = {}
        self._stop = threading.Event()
        self._rotation = threading.Thread(target=self._keep_rotating, name="identity-rotation", daemon=True)
        self._rotation.start()

    @property
    def trust_domain(self) -> str:
        """The trust domain of all identities."""
        return self._ca.trust_domain

    def add(
        self, spiffe_path: str, dns: str | None = None, *, name: str | None = None, folder: str | None = None
    ) -> Path:
        """Serve one more identity and return its socket; an identity that is already served keeps the one it has.

        *name* is the socket's file name; without it, it comes from the path: `/team/app` is `team+app.sock`, or a hash
        of it where that would be too long. With *folder* the socket is put in this folder of the directory, which is
        created, mode 0700, if it does not exist. A socket that a killed provider left is replaced.

        Raises:
            ConfigError: The path, the file name or the length of the socket's path is not usable, or the name is taken.
        """
        with self._lock:
            if self._stop.is_set():
                raise ConfigError("the identity provider has stopped")
            known = self._endpoints.get((spiffe_path, dns))
            if known is not None:
                return known.socket
            socket = self._name_socket(spiffe_path, dns, name, folder)
            if any(endpoint.socket == socket for endpoint in self._endpoints.values()):
                raise ConfigError(f"socket {socket.name}: already belongs to another identity")
            socket.parent.mkdir(mode=0o700, exist_ok=True)
            endpoint = _Endpoint(socket, lambda: self._ca.issue(spiffe_path, dns=dns, lifetime=self._lifetime))
            self._endpoints[spiffe_path, dns] = endpoint
            return socket

    def rotate(self) -> None:
        """Issue new SVIDs to all identities now and push them to every open stream."""
        with self._lock:
            endpoints = list(self._endpoints.values())
        for endpoint in endpoints:
            endpoint.renew()

    def stop(self) -> None:
        """End all streams and remove the sockets. Idempotent."""
        with self._lock:
            self._stop.set()
            endpoints = list(self._endpoints.values())
            self._endpoints.clear()
        for endpoint in endpoints:
            endpoint.stop()
        self._rotation.join()

    def __enter__(self) -> "IdentityProvider":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def _name_socket(self, spiffe_path: str, dns: str | None, name: str | None, folder: str | None) -> Path:
        for given in (name, folder):
            if given is not None and ("/" in given or given in ("", ".", "..")):
                raise ConfigError(f"socket name: got {given!r}, want a file name")
        directory = self._directory / (folder or "")
        # A SPIFFE path has neither '+' nor '@', so two identities never share a name.
        readable = spiffe_path.strip("/").replace("/", "+") + (f"@{dns}" if dns else "")
        short = hashlib.sha256(readable.encode()).hexdigest()[:16]
        candidates = [directory / (name or f"{readable}.sock")]
        if name is None:
            candidates.append(directory / f"{short}.sock")
        for candidate in candidates:
            if len(bytes(candidate)) <= LONGEST_SOCKET_PATH and len(bytes(candidate.name, "utf-8")) <= 255:
                return candidate
        raise ConfigError(
            f"socket {candidates[-1]}: the path is {len(bytes(candidates[-1]))} bytes, a unix socket takes at most "
            f"{LONGEST_SOCKET_PATH}; choose a shorter directory"
        )

    def _keep_rotating(self) -> None:
        half = self._lifetime.total_seconds() / 2
        while not self._stop.wait(min(half / 10, 1.0)):
            with self._lock:
                due = [endpoint for endpoint in self._endpoints.values() if endpoint.renewed_at + half <= monotonic()]
            for endpoint in due:
                endpoint.renew()


class _Endpoint(workload_pb2_grpc.SpiffeWorkloadAPIServicer):
    """One identity: its socket, its server, its newest SVID."""

    def __init__(self, socket: Path, issue: Callable[[], Svid]) -> None:
        self.socket = socket
        self._issue = issue
        self._news = threading.Condition()
        self._stopped = False
        self._number = 0
        self.renew()
        # A stream holds its thread until it ends; threads come as they are needed.
        pool = futures.ThreadPoolExecutor(max_workers=_STREAMS, thread_name_prefix="identity")
        self._server = grpc.server(pool, maximum_concurrent_rpcs=_STREAMS)
        workload_pb2_grpc.add_SpiffeWorkloadAPIServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        try:
            self._server.add_insecure_port(f"unix:{socket}")
        except RuntimeError as exc:
            raise ConfigError(f"socket {socket}: cannot listen there") from exc
        socket.chmod(0o700)
        self._server.start()

    def renew(self) -> None:
        """Issue a new SVID and wake all streams."""
        svid = self._issue()
        response = _encode(svid)
        with self._news:
            self.renewed_at = monotonic()
            self._number += 1
            self._response, self._bundle = response, (svid.trust_domain, response.svids[0].bundle)
            self._news.notify_all()

    def stop(self) -> None:
        """End the streams and the server."""
        with self._news:
            self._stopped = True
            self._news.notify_all()
        self._server.stop(grace=1.0).wait()
        self.socket.unlink(missing_ok=True)

    def FetchX509SVID(  # noqa: N802, the name is the contract's
        self, request: workload_pb2.X509SVIDRequest, context: grpc.ServicerContext
    ) -> Iterator[workload_pb2.X509SVIDResponse]:
        """Send the SVID, and each newer one, until the caller leaves."""
        for _ in self._each_renewal(context):
            yield self._response

    def FetchX509Bundles(  # noqa: N802, the name is the contract's
        self, request: workload_pb2.X509BundlesRequest, context: grpc.ServicerContext
    ) -> Iterator[workload_pb2.X509BundlesResponse]:
        """Send the bundle, and again with each renewal, until the caller leaves."""
        for _ in self._each_renewal(context):
            trust_domain, bundle = self._bundle
            yield workload_pb2.X509BundlesResponse(bundles={f"spiffe://{trust_domain}": bundle})

    def _each_renewal(self, context: grpc.ServicerContext) -> Iterator[int]:
        if _HEADER not in {(key, value) for key, value in context.invocation_metadata()}:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"security header missing: want {_HEADER[0]}: {_HEADER[1]}")
        context.add_callback(self._wake)
        seen = 0
        while True:
            with self._news:
                while not self._stopped and self._number == seen and context.is_active():
                    self._news.wait()
                if self._stopped or not context.is_active():
                    return
                seen = self._number
            yield seen

    def _wake(self) -> None:
        with self._news:
            self._news.notify_all()


def _encode(svid: Svid) -> workload_pb2.X509SVIDResponse:
    return workload_pb2.X509SVIDResponse(
        svids=[
            workload_pb2.X509SVID(
                spiffe_id=svid.spiffe_id,
                x509_svid=b"".join(certificate.public_bytes(Encoding.DER) for certificate in svid.chain()),
                x509_svid_key=svid.private_key().private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
                bundle=b"".join(certificate.public_bytes(Encoding.DER) for certificate in svid.bundle()),
            )
        ]
    )
