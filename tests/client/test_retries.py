"""Which failures of the transport are tried again: found out with real servers that are none, or not ours."""

import dataclasses
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import grpc
import pytest

import shardhold
from shardhold import Client
from shardhold._retries import Tries
from tests.client.bridge import MakeClient
from tests.client.servers import Nexus
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most, patience

Listening: TypeAlias = Callable[[Authority, ExitStack], str]


@contextmanager
def _counted(client: Client) -> Iterator[list[float]]:
    """Note the time-out of every try that *client* makes to read."""
    tries: list[float] = []
    methods: Any = getattr(client, "_client", client)._methods
    get = methods["GetSecret"]

    def note(request: object, *, timeout: float) -> object:
        tries.append(timeout)
        return get(request, timeout=timeout)

    methods["GetSecret"] = note
    yield tries


def _start(stack: ExitStack, nexus: Nexus) -> str:
    stack.callback(nexus.stop)
    return nexus.address


def _foreign(ca: Authority, stack: ExitStack) -> str:
    return _start(stack, Nexus(Authority("other.org")))


def _not_a_nexus(ca: Authority, stack: ExitStack) -> str:
    return _start(stack, Nexus(ca, identity=FixedIdentity(ca.issue("/team/other", dns="other.shardhold"))))


def _without_tls(ca: Authority, stack: ExitStack) -> str:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def answer() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:  # closed
                return
            with peer:
                peer.recv(1)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=answer, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return f"127.0.0.1:{listener.getsockname()[1]}"


def _without_a_name(ca: Authority, stack: ExitStack) -> str:
    return "nowhere.onion:8553"  # which no resolver asks for, by RFC 7686


@pytest.mark.parametrize(
    ("listen", "hint"),
    [
        pytest.param(_foreign, "another trust domain", id="server of another trust domain"),
        pytest.param(_not_a_nexus, "no nexus of this trust domain", id="workload in place of a nexus"),
        pytest.param(_without_tls, "does not speak TLS", id="no TLS"),
        pytest.param(_without_a_name, "cannot be resolved", id="name that does not exist"),
    ],
)
def test_what_cannot_pass(make: MakeClient, ca: Authority, listen: Listening, hint: str) -> None:
    """What no repetition can change is raised after one try, whatever time is left."""
    with (
        ExitStack() as stack,
        make(listen(ca, stack), FixedIdentity(ca.issue("/team/app")), timeout=patience(10)) as client,
        _counted(client) as tries,
    ):
        with pytest.raises(shardhold.UnavailableError) as caught:
            client.get("a")
        assert hint in caught.value.hint
        assert len(tries) == 1


def _nobody(ca: Authority, stack: ExitStack) -> str:
    nexus = Nexus(ca)
    nexus.stop()
    return nexus.address


def _closing(ca: Authority, stack: ExitStack) -> str:
    """Listen as a server does that is stopping, or that refuses this SVID."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def answer() -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:  # closed
                return

    threading.Thread(target=answer, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    "listen", [pytest.param(_nobody, id="refused connection"), pytest.param(_closing, id="broken handshake")]
)
def test_what_may_pass(make: MakeClient, ca: Authority, listen: Listening) -> None:
    """A nexus that starts or stops is asked again, and each try gets what is left of the time."""
    with (
        ExitStack() as stack,
        make(listen(ca, stack), FixedIdentity(ca.issue("/team/app")), timeout=patience(1)) as client,
        _counted(client) as tries,
    ):
        with pytest.raises(shardhold.UnavailableError):
            client.get("a")
        assert len(tries) >= 2
        assert tries == sorted(tries, reverse=True)


def test_refused_by_the_nexus(make: MakeClient, ca: Authority) -> None:
    """A nexus that refuses this SVID looks like one that stops; the hint says what to check."""
    nexus = Nexus(ca)
    foreign = Authority("other.org").issue("/team/app")
    svid = dataclasses.replace(foreign, bundle_pem=ca.issue("/team/app").bundle_pem)  # it accepts the nexus, not itself
    with make(nexus.address, FixedIdentity(svid), timeout=patience(1)) as client, _counted(client) as tries:
        with pytest.raises(shardhold.UnavailableError) as caught:
            client.get("a")
        assert "no server accepted this SVID" in caught.value.hint
        assert len(tries) >= 2
    nexus.stop()


class _Failure(grpc.RpcError):
    def __init__(self, details: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> None:
        self._details = details
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> tuple[()]:
        return ()


@pytest.mark.parametrize(
    ("details", "is_repeated"),
    [
        pytest.param("CERTIFICATE_VERIFY_FAILED: certificate has expired", True, id="expired: may be renewed"),
        pytest.param("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", True, id="clocks that differ"),
        pytest.param("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", False, id="foreign"),
        pytest.param("DNS resolution failed for n: C-ares status: Domain name not found", False, id="older gRPC"),
        pytest.param("DNS resolution failed: Could not contact DNS servers", True, id="resolver away"),
        pytest.param("DNS resolution failed: DNS server returned answer with no data", False, id="no address"),
        pytest.param("Socket closed", True, id="broken"),
    ],
)
def test_words(details: str, is_repeated: bool) -> None:
    """Words that real servers cannot be made to cause here."""
    assert (Tries(at_most(10)).wait_after(_Failure(details)) is not None) is is_repeated


def test_waits_grow_up_to_a_second() -> None:
    """No wait is longer than a second, and none is begun that would end after the deadline."""
    tries = Tries(3600)
    waits = [tries.wait_after(_Failure("Socket closed")) for _ in range(50)]
    assert all(wait is not None and 0 <= wait <= min(0.05 * 2**number, 1) for number, wait in enumerate(waits))
    assert Tries(0.0).wait_after(_Failure("Socket closed")) is None
    assert Tries(3600).wait_after(ValueError("closed")) is None


def test_a_try_that_the_deadline_cut_off_does_not_hide_why_the_one_before_failed() -> None:
    """A call that only ever ran out of time says that."""
    tries, failed = Tries(3600), _Failure("Socket closed")
    cut_off = _Failure("Deadline Exceeded", grpc.StatusCode.DEADLINE_EXCEEDED)
    assert tries.choose(cut_off) is cut_off
    tries.wait_after(failed)
    assert tries.choose(cut_off) is failed
    other = _Failure("no such secret", grpc.StatusCode.NOT_FOUND)
    assert tries.choose(other) is other
