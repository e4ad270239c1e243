"""A small HTTP server beside gRPC: /livez and /readyz for an orchestrator, /metrics for Prometheus.

It answers GET for these three paths to anyone who can connect, so it says nothing that is not public, and it listens on
loopback unless configured otherwise. Each connection carries one request; size, time and number are limited.
"""

import io
import json
import socket
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from time import monotonic
from typing import Any, Final

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from common.config.config import split_address
from common.errors import ConfigError

REQUEST_LIMIT: Final = 8 * 1024  # bytes of request line and headers
PATHS: Final = ("/livez", "/readyz", "/metrics")
CONNECTION_LIMIT: Final = 32  # at once; further ones are closed unanswered

log = structlog.get_logger()


class HttpServer(ThreadingMixIn, TCPServer):
    """Serves /livez, /readyz and /metrics from threads of its own.

    *readiness* returns the reasons why the process is not ready; none means ready. *alarms* are shown beside them and
    take readiness from nobody. *count* hears of each probe and its HTTP status. These callables run on any thread and
    must not wait. *timeout_s* limits how long the whole request may take to arrive, and again the answer to leave.
    """

    allow_reuse_address = True  # Linux: past connections do not block the port; a second listener is still refused
    daemon_threads = True
    block_on_close = False
    request_queue_size = CONNECTION_LIMIT

    def __init__(
        self,
        address: str,
        *,
        is_live: Callable[[], bool],
        readiness: Callable[[], list[str]],
        registry: CollectorRegistry,
        alarms: Callable[[], list[str]] = list,
        count: Callable[[str, str], None] = lambda probe, code: None,
        timeout_s: float = 5.0,
    ) -> None:
        host, port = split_address("listen.http", address)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler, bind_and_activate=False)
        self.is_live, self.readiness, self.registry, self.timeout_s = is_live, readiness, registry, timeout_s
        self.alarms, self.count = alarms, count
        self._address = address
        self._free = threading.BoundedSemaphore(CONNECTION_LIMIT)
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="http", daemon=True)

    @property
    def port(self) -> int:
        """The bound port, from `start` on."""
        return int(self.server_address[1])

    def start(self) -> None:
        """Bind the address and begin to serve.

        Raises:
            ConfigError: The address cannot be bound.
        """
        try:
            self.server_bind()
            self.server_activate()
        except OSError as exc:
            self.server_close()
            raise ConfigError(f"listen.http: {self._address} cannot be bound: {exc.strerror or exc}") from exc
        self._thread.start()

    def stop(self) -> None:
        """Stop answering and close the port. Called again, or before `start`, it only closes the socket."""
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if isinstance(sys.exception(), OSError):
            return  # the peer is gone; nobody who can connect may fill a log with that
        log.warning("http request failed", exc_info=True)


class _Request(io.RawIOBase):
    """Reads one request from a socket, within its limits of size and time; beyond them it raises TimeoutError."""

    def __init__(self, connection: socket.socket, timeout_s: float) -> None:
        self._connection = connection
        self._left = REQUEST_LIMIT
        self._deadline = monotonic() + timeout_s

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = self._deadline - monotonic()
        if seconds <= 0 or not self._left:
            raise TimeoutError(f"request is late, or longer than {REQUEST_LIMIT} bytes")
        self._connection.settimeout(seconds)
        count = self._connection.recv_into(buffer, min(len(buffer), self._left))
        self._left -= count
        return count


class _Handler(BaseHTTPRequestHandler):
    server: HttpServer
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def setup(self) -> None:
        super().setup()
        self.rfile = io.BufferedReader(_Request(self.connection, self.server.timeout_s))

    def do_GET(self) -> None:
        match self.path:
            case "/livez" if self.server.is_live():
                self._answer(HTTPStatus.OK, "text/plain; charset=utf-8", b"live\n")
            case "/livez":
                self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", b"not live\n")
            case "/readyz":
                reasons = self.server.readiness()
                status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
                said = json.dumps(reasons + self.server.alarms())
                self._answer(status, "application/json", said.encode() + b"\n")
            case "/metrics":
                self._answer(HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        if code == HTTPStatus.NOT_IMPLEMENTED:  # how the base class reports that there is no do_METHOD
            code, message = HTTPStatus.METHOD_NOT_ALLOWED, None
        self._count(code)
        super().send_error(code, message, explain)

    def version_string(self) -> str:
        return "shardhold"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — named by the base class
        pass  # probes and scrapes come every few seconds

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self._count(status)
        self.connection.settimeout(self.server.timeout_s)
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _count(self, status: int) -> None:
        path = getattr(self, "path", "")  # not there when the request did not parse
        self.server.count(path if path in PATHS else "other", str(int(status)))
