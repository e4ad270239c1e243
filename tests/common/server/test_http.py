"""The HTTP server of probes and metrics, over real sockets."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from socketserver import ThreadingMixIn

import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.errors import ConfigError
from common.server import http
from common.server.http import HttpServer
from tests.kit.patience import at_most


@dataclass
class Process:
    """What a server reports about itself."""

    live: bool = True
    reasons: list[str] = field(default_factory=list)
    alarms: list[str] = field(default_factory=list)
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    probes: list[tuple[str, str]] = field(default_factory=list)

    def server(self, address: str = "127.0.0.1:0", *, timeout_s: float = 5.0) -> HttpServer:
        return HttpServer(
            address,
            is_live=lambda: self.live,
            readiness=lambda: self.reasons,
            alarms=lambda: self.alarms,
            registry=self.registry,
            count=lambda *probe: self.probes.append(probe),
            timeout_s=timeout_s,
        )


@contextmanager
def running(server: HttpServer) -> Iterator[HttpServer]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def process() -> Process:
    return Process()


@pytest.fixture(scope="module")
def server(process: Process) -> Iterator[HttpServer]:
    with running(process.server()) as server:
        yield server


def ask(port: int, path: str, method: str = "GET") -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection("127.0.0.1", port, timeout=at_most(10))) as connection:
        connection.request(method, path)
        response = connection.getresponse()
        return response, response.read()


def send(port: int, data: bytes) -> bytes:
    """Send raw bytes and read until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=at_most(20)) as connection:
        answer = b""
        try:
            connection.sendall(data)
            while part := connection.recv(4096):
                answer += part
        except ConnectionError:
            pass
        return answer


@pytest.mark.parametrize(("live", "status"), [(True, 200), (False, 503)])
def test_livez_says_whether_the_process_should_live(
    process: Process, server: HttpServer, live: bool, status: int
) -> None:
    process.live = live
    response, _ = ask(server.port, "/livez")
    assert response.status == status


@pytest.mark.parametrize(
    ("reasons", "status"),
    [pytest.param([], 200, id="ready"), pytest.param(["2 of 3 shards", "audit fails"], 503, id="with reasons")],
)
def test_readyz_lists_what_is_missing(process: Process, server: HttpServer, reasons: list[str], status: int) -> None:
    process.reasons = reasons
    response, body = ask(server.port, "/readyz")
    assert (response.status, response.headers["Content-Type"], json.loads(body)) == (
        status,
        "application/json",
        reasons,
    )


def test_an_alarm_is_shown_and_takes_readiness_from_nobody(process: Process, server: HttpServer) -> None:
    """It stands beside the reasons, of which there is none."""
    process.reasons, process.alarms = [], ["the escrow is damaged"]
    response, body = ask(server.port, "/readyz")
    process.alarms = []
    assert (response.status, json.loads(body)) == (200, ["the escrow is damaged"])


def test_metrics_come_from_the_registry(process: Process, server: HttpServer) -> None:
    """Only the metrics of the given registry are shown, in Prometheus' text form."""
    Gauge("shardhold_generation", "generation of the root key", registry=process.registry).set(3)
    response, body = ask(server.port, "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"].startswith("text/plain; version=")
    assert b"shardhold_generation 3.0\n" in body


def test_probes_are_counted_by_few_names(process: Process, server: HttpServer) -> None:
    """Whoever can connect asks for any path, and must not fill the memory with counters."""
    process.live, process.reasons = True, ["sealed"]
    process.probes.clear()
    for path in ("/livez", "/readyz", "/metrics", "/a", "/b?c"):
        ask(server.port, path)
    ask(server.port, "/livez", "POST")
    send(server.port, b"nonsense\r\n\r\n")
    wanted = [("/livez", "200"), ("/readyz", "503"), ("/metrics", "200"), *2 * [("other", "404")], ("/livez", "405")]
    assert process.probes == [*wanted, ("other", "400")]


@pytest.mark.parametrize("path", ["/", "/livez/", "/livez?x=1", "/../etc/passwd"])
def test_other_paths_do_not_exist(server: HttpServer, path: str) -> None:
    """Paths are compared exactly, and any other path is not found."""
    assert ask(server.port, path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "BREW"])
def test_other_methods_are_refused(server: HttpServer, method: str) -> None:
    """Methods other than GET are refused."""
    assert ask(server.port, "/livez", method)[0].status == 405


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /" + b"a" * http.REQUEST_LIMIT + b" HTTP/1.1\r\n\r\n", id="long path"),
        pytest.param(b"GET /livez HTTP/1.1\r\nA: " + b"a" * http.REQUEST_LIMIT + b"\r\n\r\n", id="long header"),
        pytest.param(b"GET /livez HTTP/1.1\r\n" + b"A: b\r\n" * http.REQUEST_LIMIT, id="many headers"),
    ],
)
def test_a_request_beyond_the_limit_is_refused(server: HttpServer, request_bytes: bytes) -> None:
    """At most 8 KiB and 100 headers of a request are read, then the connection is closed."""
    assert b" 200 " not in send(server.port, request_bytes)


@pytest.mark.parametrize("start", [b"", b"GET /livez HTTP/1.1\r\nHost: a"])
def test_an_idle_connection_is_closed(process: Process, start: bytes) -> None:
    """A peer that sends nothing, or stops in the middle, holds a thread for the time-out at most."""
    with running(process.server(timeout_s=0.2)) as server:
        assert send(server.port, start) == b""


def test_idle_connections_beyond_the_limit_are_closed_at_once(process: Process) -> None:
    """The number of threads is bounded; the next probe is served as soon as one of them is free."""
    process.live = True
    with running(process.server()) as server:
        address = ("127.0.0.1", server.port)
        held = [socket.create_connection(address, timeout=at_most(20)) for _ in range(http.CONNECTION_LIMIT)]
        try:
            assert send(server.port, b"GET /livez HTTP/1.1\r\n\r\n") == b""
        finally:
            for connection in held:
                connection.close()
        while not send(server.port, b"GET /livez HTTP/1.1\r\n\r\n"):
            pass  # until the closed ones are noticed; bounded by the timeout of the test


def test_a_taken_port_is_named(server: HttpServer) -> None:
    """A second server on the same port is refused, and not bound beside the first."""
    with pytest.raises(ConfigError, match=rf"listen.http: .*127\.0\.0\.1.*{server.port}.*Address already in use"):
        Process().server(f"127.0.0.1:{server.port}").start()


def test_the_port_is_closed_after_stop(process: Process) -> None:
    """Stop returns once nothing answers any more; it may be called twice, and before any start."""
    server = process.server()
    server.start()
    server.stop()
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=at_most(5))
    process.server().stop()


@pytest.mark.parametrize("address", ["[::1]:0"])
def test_it_listens_on_ipv6(process: Process, address: str) -> None:
    """An address in brackets is listened on as IPv6."""
    with running(process.server(address)) as server:
        socket.create_connection(("::1", server.port), timeout=at_most(5)).close()


def test_a_failing_check_is_no_answer(capfd: pytest.CaptureFixture[str]) -> None:
    """An exception in a check closes the connection without an answer, is logged, and leaves the server running."""

    def fail() -> bool:
        raise RuntimeError("broken check")

    broken: Callable[[], bool] = fail
    server = HttpServer("127.0.0.1:0", is_live=broken, readiness=list, registry=CollectorRegistry())
    with running(server):
        assert send(server.port, b"GET /livez HTTP/1.1\r\n\r\n") == b""
        assert b" 200 " in send(server.port, b"GET /readyz HTTP/1.1\r\n\r\n")
    out, err = capfd.readouterr()
    assert "broken check" in out + err


def test_a_peer_that_leaves_is_not_logged(process: Process, capfd: pytest.CaptureFixture[str]) -> None:
    """A connection that is reset in the middle of a request is not logged, so nobody can fill a log that way."""
    process.live = True
    with running(process.server()) as server:
        for _ in range(http.CONNECTION_LIMIT):
            with socket.create_connection(("127.0.0.1", server.port), timeout=at_most(20)) as connection:
                connection.sendall(b"GET /livez")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        while not send(server.port, b"GET /livez HTTP/1.1\r\n\r\n"):
            pass  # until all are noticed; bounded by the timeout of the test
    assert capfd.readouterr() == ("", "")


def test_a_thread_that_cannot_start_costs_no_place(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a time in which no thread could start, probes are answered again."""

    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    process.live = True
    with running(process.server()) as server:
        with monkeypatch.context() as patch:
            patch.setattr(ThreadingMixIn, "process_request", fail)
            for _ in range(http.CONNECTION_LIMIT + 1):
                assert send(server.port, b"GET /livez HTTP/1.1\r\n\r\n") == b""
        assert b" 200 " in send(server.port, b"GET /livez HTTP/1.1\r\n\r\n")
