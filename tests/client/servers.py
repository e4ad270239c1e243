"""What the tests of both clients and both channels call: plain servers of grpcio over mTLS.

They are not our own edge, since the SDK works with older versions of grpcio than our servers do.
"""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeAlias

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from common.errors import ShardholdError
from common.server.edge import code_of
from common.server.tls import server_credentials
from shardhold._calls import SERVER_NAME
from shardhold._connections import MESSAGE_LIMIT
from shardhold.identity import IdentitySource
from shardhold.v1 import cluster_pb2, secrets_pb2
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most

NEXUS = "/shardhold/nexus/a"
Answer: TypeAlias = Callable[[Any], Message]


class SlowLink:
    """A link to the server at *port* on loopback that delays data by *delay_s* in each direction."""

    def __init__(self, port: int, delay_s: float) -> None:
        self._port = port
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        pause = threading.Event()
        with one, contextlib.suppress(OSError):  # cut off
            while part := one.recv(65536):
                pause.wait(self._delay_s)
                other.sendall(part)
            other.shutdown(socket.SHUT_WR)


class Server(grpc.GenericRpcHandler):
    """Echoes, waits and streams, and notes which certificates it saw."""

    def __init__(self, identity: IdentitySource, port: int = 0) -> None:
        self.seen: set[object] = set()
        self.go_on = threading.Event()
        self.waiting = threading.Event()
        self.wait_ended = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(16),
            handlers=[self],
            options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 2 * MESSAGE_LIMIT)),
        )
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", server_credentials(identity))
        self._server.start()

    @property
    def address(self) -> str:
        """The host:port that it listens on."""
        return f"127.0.0.1:{self.port}"

    def stop(self) -> None:
        """Cut off all calls."""
        self.go_on.set()
        self._server.stop(0).wait()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method == "/test/Echo":
            return grpc.unary_unary_rpc_method_handler(self._echo)
        if handler_call_details.method == "/test/Wait":
            return grpc.unary_unary_rpc_method_handler(self._wait)
        if handler_call_details.method == "/test/Count":
            return grpc.unary_stream_rpc_method_handler(self._count)
        return None

    def _echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.seen.add(next(iter(context.auth_context()["x509_pem_cert"])))
        context.set_trailing_metadata(tuple(item for item in context.invocation_metadata() if item[0] == "x-test"))
        return request

    def _wait(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.wait_ended.set)
        self.waiting.set()
        self.go_on.wait(at_most(20))
        return request

    def _count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield b"first"
        self.go_on.wait(at_most(20))
        yield b"second"


class EndCall(Exception):  # noqa: N818 — an order, not an error
    """What an answer raises to have the server itself end the call."""


class Nexus(grpc.GenericRpcHandler):
    """Serves the SDK's calls with the answers that a test sets, and records the requests."""

    def __init__(self, ca: Authority, port: int = 0, *, identity: IdentitySource | None = None) -> None:
        self.requests: list[Any] = []
        self.callers: set[str] = set()
        self.certificates: set[object] = set()
        self.cancelled: list[str] = []  # RPCs whose callers left before the answer
        self.answers: dict[str, Answer] = {}
        source = identity or FixedIdentity(ca.issue(NEXUS, dns=SERVER_NAME))
        self._server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[self], options=(("grpc.so_reuseport", 0),))
        self.port = self._server.add_secure_port(f"127.0.0.1:{port}", server_credentials(source))
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def stop(self) -> None:
        """Cut off all calls."""
        self._server.stop(0).wait()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        service, _, rpc = str(handler_call_details.method).removeprefix("/shardhold.v1.").partition("/")
        messages = {"SecretService": secrets_pb2, "ClusterService": cluster_pb2}[service]

        def answer(request: Any, context: grpc.ServicerContext) -> Message:
            is_answered = threading.Event()
            context.add_callback(lambda: None if is_answered.is_set() else self.cancelled.append(rpc))
            self.requests.append(request)
            self._note_caller(context)
            try:
                return self.answers[rpc](request)
            except ShardholdError as exc:
                detail = any_pb2.Any()
                detail.Pack(error_details_pb2.ErrorInfo(domain="shardhold", reason=exc.reason))
                status = status_pb2.Status(code=code_of(exc).value[0], message=str(exc), details=[detail])
                context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                is_answered.set()
                context.abort(code_of(exc), str(exc))
            except EndCall:
                is_answered.set()
                context.cancel()
                raise
            finally:
                is_answered.set()

        return grpc.unary_unary_rpc_method_handler(
            answer,
            request_deserializer=getattr(messages, f"{rpc}Request").FromString,
            response_serializer=getattr(messages, f"{rpc}Response").SerializeToString,
        )

    def fail(self, rpc: str, *failures: ShardholdError | EndCall, then: Message) -> None:
        """Answer with each failure once, and then normally."""
        left = list(failures)

        def answer(_: Any) -> Message:
            if left:
                raise left.pop(0)
            return then

        self.answers[rpc] = answer

    def _note_caller(self, context: Any) -> None:  # grpcio's stubs have the wrong type for the authentication context
        peer = context.auth_context()
        self.callers |= {name.decode() for name in peer["peer_spiffe_id"]}
        self.certificates.add(peer["x509_pem_cert"][0])
