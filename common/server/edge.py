"""The one file that knows grpcio's server.

Nexus and keeper hand it a table of methods; a faster edge would be another file like this one. A method is a plain
function (call, request) → response that knows nothing of gRPC. One wrapper does the rest, since stacked interceptors
cost more than most calls. In this order, it identifies the caller (`common.server.peer`), checks that the server's own
SVID is valid, since a connection may outlive it, awaits the message (`common.server.arrival`), checks the deadline,
parses the request, runs the method and serialises the response. What a method raises becomes a status of `CODES` and a
google.rpc.ErrorInfo with the error's stable reason.

Every method is unary, but gRPC is told that its request is a stream: for a unary request gRPC awaits the message in the
worker, without a limit and before we can check who calls. On the wire the two are the same. Messages after the first
are not read, just as gRPC ignores them after a unary request; looking for them would cost each call another thread
switch.

Health answers every authenticated peer, for "", for each service and for each condition. There is no reflection.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NoReturn, TypeAlias, TypeVar

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_health.v1 import health_pb2
from prometheus_client import CollectorRegistry

from common import errors
from common.server.answers import Answers
from common.server.arrival import Arrivals
from common.server.meter import Meter, Record
from common.server.peer import PeerCheck
from common.server.sockets import count_connections
from common.server.tls import server_credentials
from common.server.watches import Send, Watches
from common.server.workers import Arguments, Workers
from shardhold.identity import IdentitySource, IdentityUnavailableError

ERROR_DOMAIN = "shardhold"
HEALTH_SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

CODES: Mapping[type[errors.ShardholdError], grpc.StatusCode] = {
    errors.ShardholdError: grpc.StatusCode.INTERNAL,
    errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
    errors.OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidArgumentError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    errors.DeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.ConflictError: grpc.StatusCode.ABORTED,
    errors.IntegrityError: grpc.StatusCode.DATA_LOSS,
    errors.StatementError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MarkError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WordsError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ProtectionError: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""By family, with exceptions: the nearest base of an error that is listed here decides."""

_MAX_MESSAGE = 5 * 1024 * 1024  # bytes; a batch holds at most 4 MiB of secrets
_MAX_METADATA = 16 * 1024  # bytes of all headers of a call
_SETTINGS_TIMEOUT_MS = 1000
_MAX_STREAMS = 256  # calls in flight on one connection
MAX_CALLS = 1024  # in flight and queued on one server
MAX_CALLS_PER_CALLER = 256  # of those; as many as one connection may have
_MAX_CONNECTIONS = 2048
_CONNECTION_GRACE_MS = 30_000  # for the calls of a connection that has reached its maximum age
_MAX_DETAILS = 2000  # characters of an error's message; it travels in the headers
_NO_DEADLINE_S = 1e9  # grpcio reports centuries when the client set none
_STATUS_DETAILS = "grpc-status-details-bin"
_TRANSPORT_OPTIONS: tuple[tuple[str, int], ...] = (
    # By default a second server silently binds a port that is taken.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ("grpc.max_send_message_length", _MAX_MESSAGE),
    ("grpc.max_metadata_size", _MAX_METADATA),
    ("grpc.absolute_max_metadata_size", _MAX_METADATA),
    # Neither limit is in force before the client has acknowledged it; who does not within a second is cut off.
    ("grpc.http2.settings_timeout", _SETTINGS_TIMEOUT_MS),
    ("grpc.max_concurrent_streams", _MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
    ("grpc.server.max_pending_requests", MAX_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAX_CALLS),
    # Only uncompressed messages: a small compressed one could unpack to gigabytes.
    ("grpc.compression_enabled_algorithms_bitset", 1),
    ("grpc.per_message_decompression", 0),
    # A half-open peer is detected after 30 + 10 s, a handshake that goes nowhere after 3 s: clients give up then, too.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.server_handshake_timeout_ms", 3_000),
    # Clients may ping every 10 s; two pings too many and the connection is closed.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    # Every stream that a client resets costs it a round trip (by default only one in a hundred does).
    ("grpc.http2.ping_on_rst_stream_percent", 100),
)

_EVENT = 1  # of what gRPC submits to its executor: the event of the call, which knows its peer

_logger = structlog.get_logger()

M = TypeVar("M", bound=Message)
# The authentication context holds lists of bytes; grpcio's stubs say bytes.
_Identify = Callable[[Any], str]
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"  # generic in its stubs only


@dataclass(frozen=True, slots=True)
class Call:
    """What a method knows about its call besides the request."""

    caller: str  # SPIFFE ID
    address: str = ""  # of the peer, as gRPC writes it: ipv4:127.0.0.1:40000
    deadline: float | None = None  # seconds left when the method began; None: the client set none
    is_wanted: Callable[[], bool] = lambda: True  # whether the caller still waits; long work asks from time to time


@dataclass(frozen=True, slots=True)
class Method:
    """One unary RPC: its full name, its messages, and the function that answers it."""

    name: str  # /shardhold.v1.SecretService/GetSecret
    request: type[Message]
    response: type[Message]
    handle: Callable[[Call, Any], Any]


class GrpcServer:
    """A gRPC server over mTLS for a table of methods.

    Args:
        methods: Every RPC that is served, except health.
        address: host:port; port 0 takes a free one.
        identity: Where the server's SVID comes from; rotations are followed.
        trust_domain: Of server and callers.
        workers: Threads that run methods.
        max_connection_age_s: Seconds after which a client must reconnect and present its certificate again.
        max_calls: Calls in flight and queued; further ones are refused with RESOURCE_EXHAUSTED.
        max_calls_per_caller: The same of one caller.
        message_wait_s: Seconds that a call may take to send its message once a worker is free for it.
        registry: Where calls are counted; None: nowhere.
        meter: Of another server, to count calls together with its own.
        option: The name of *address* in the configuration.
        admit: Refuses a caller by its SPIFFE ID, before anything is read of the call; None: takes everybody.
        conditions: What else health tells of, by name: whether it is so at this moment. It cannot be watched.
    """

    def __init__(
        self,
        methods: Sequence[Method],
        *,
        address: str,
        identity: IdentitySource,
        trust_domain: str,
        workers: int = 8,
        max_connection_age_s: int = 3600,
        max_calls: int = MAX_CALLS,
        max_calls_per_caller: int = MAX_CALLS_PER_CALLER,
        message_wait_s: float = 2.0,
        registry: CollectorRegistry | None = None,
        meter: Meter | None = None,
        option: str = "listen.address",
        admit: Callable[[str], None] | None = None,
        conditions: Mapping[str, Callable[[], bool]] = MappingProxyType({}),
    ) -> None:
        self._port = 0
        self._conditions = conditions
        self._address = address
        self._option = option
        self._identity = identity
        self._services = ("", *sorted({method.name.split("/")[1] for method in methods}))
        self._peers = PeerCheck(trust_domain, admit=admit)
        self._pool = Workers(
            workers,
            name_caller=self._name_caller,
            refuse=self._refuse_call,
            per_caller=max_calls_per_caller,
        )
        self._max_calls_per_caller = max_calls_per_caller
        self._arrivals = Arrivals(
            _end,
            is_short=self._pool.is_short,
            per_caller=max(1, workers // 4),
            wait_s=message_wait_s,
        )
        self._watches: Watches[grpc.ServicerContext] = Watches(_end)
        self._answers: Answers[grpc.ServicerContext] = Answers(_end)
        self.meter = meter or Meter(registry)
        self._records: dict[str, Record] = {}
        self._stopping = threading.Lock()
        handlers = {method.name: self._make_handler(method, self.meter.for_method(method.name)) for method in methods}
        handlers |= self._make_health_handlers()
        self._server = grpc.server(
            self._pool,
            handlers=[_MethodTable(handlers)],
            options=(
                *_TRANSPORT_OPTIONS,
                ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
                ("grpc.max_connection_age_grace_ms", _CONNECTION_GRACE_MS),
            ),
            maximum_concurrent_rpcs=max_calls,
        )

    @property
    def connections(self) -> int:
        """How many connections there are at the port now, those in their handshake included; 0 before `start`."""
        return count_connections(self._port) if self._port else 0

    @property
    def calls_running(self) -> int:
        """How many calls workers run now."""
        return self._pool.running

    @property
    def calls_waiting(self) -> int:
        """How many calls wait for a worker now."""
        return self._pool.waiting

    def start(self) -> int:
        """Bind the address, serve, and return the port. Health stays NOT_SERVING until `set_serving`.

        Raises:
            ConfigError: The address cannot be bound.
            IdentityUnavailableError: There is no SVID now.
        """
        try:
            credentials = server_credentials(self._identity)
        except IdentityUnavailableError as exc:
            raise errors.IdentityUnavailableError(str(exc)) from exc
        try:
            self._port = self._server.add_secure_port(self._address, credentials)
        except RuntimeError as exc:
            raise errors.ConfigError(
                f"{self._option}: cannot bind {self._address!r}, want a free address of this machine"
            ) from exc
        self._server.start()
        self._arrivals.start()
        self._answers.start()
        self._watches.start()
        return self._port

    def set_serving(self, serving: bool) -> None:
        """Say by gRPC health, for "" and for each service, whether calls are served. Waits for nobody."""
        self._watches.set_serving(serving)

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those in flight *grace* seconds, then cancel them. Returns when done; idempotent."""
        with self._stopping:
            self._watches.set_serving(False)
            self._watches.stop()  # they would stay for the whole grace period
            self._server.stop(grace).wait()
            self._arrivals.stop()
            self._answers.stop()
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _make_handler(self, method: Method, meter: Record) -> _Handler:
        handle = method.handle
        self._records[method.name] = meter
        identify: _Identify = self._peers.identify
        arrivals, answers, check_own = self._arrivals, self._answers, self._identity.current
        pool = self._pool
        parse: Callable[[bytes], Message] = method.request.FromString

        def serve(messages: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            started = time.perf_counter()
            code = grpc.StatusCode.OK
            try:
                caller = pool.caller or identify(context.auth_context())
                check_own()
                arrival = arrivals.enter(caller, context)
                try:
                    body = next(messages, None)
                except grpc.RpcError:  # ended by the caller, by its deadline, or by us
                    code = grpc.StatusCode.CANCELLED if arrival.code is grpc.StatusCode.OK else arrival.code
                    raise
                finally:
                    arrivals.leave(caller, arrival)
                if arrival.code is not grpc.StatusCode.OK:  # the message came too late to be acted on
                    code = arrival.code
                    context.abort(code, arrival.details)
                if body is None:
                    raise errors.InvalidArgumentError("the call ended without a message, want one")
                remaining: float | None = context.time_remaining()
                if remaining is not None and remaining > _NO_DEADLINE_S:
                    remaining = None
                elif remaining is not None and remaining <= 0:
                    code = grpc.StatusCode.DEADLINE_EXCEEDED
                    context.abort(code, "the deadline passed before the call began")
                response: Message = handle(
                    Call(caller, context.peer(), remaining, context.is_active), _parse(parse, body)
                )
                answer = response.SerializeToString()
                opened = answers.open(caller, context, len(answer))
                if not context.add_callback(opened.close):
                    opened.close()
                return answer
            except errors.ShardholdError as exc:
                code = code_of(exc)
                _refuse(context, code, exc.reason, str(exc))
            except IdentityUnavailableError as exc:  # the SVID of this server; the SDK's error
                code = grpc.StatusCode.UNAVAILABLE
                _refuse(context, code, errors.IdentityUnavailableError.reason, str(exc))
            except Exception:
                if code is not grpc.StatusCode.OK:  # our own abort, or a call that was ended before its message came
                    raise
                # The one place that may catch everything: the caller is told nothing, the log gets the details.
                code = grpc.StatusCode.INTERNAL
                _logger.exception("call failed", rpc=method.name, peer=context.peer())
                _refuse(context, code, errors.ShardholdError.reason, "internal error")
            finally:
                meter(code, time.perf_counter() - started)

        return grpc.stream_unary_rpc_method_handler(serve)

    def _name_caller(self, arguments: Arguments) -> str:
        try:
            return self._peers.identify(_read_peer(arguments))
        except errors.UnauthenticatedError:
            return ""  # the worker finds it again, and refuses the call with the reason
        except Exception:  # an error on gRPC's own thread would end it, and with it the server
            _logger.exception("caller not named")
            return ""

    def _refuse_call(self, arguments: Arguments) -> None:
        event = arguments[_EVENT]
        code = grpc.StatusCode.RESOURCE_EXHAUSTED
        record = self._records.get(event.call_details.method.decode())
        if record is not None:
            record(code, 0.0)
        event.call.cancel(code.value[0], f"more than {self._max_calls_per_caller} calls of this caller wait or run")

    def _make_health_handlers(self) -> dict[str, _Handler]:
        def check(_: Call, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
            condition = self._conditions.get(request.service)
            if condition is None:
                self._require_service(request.service)
            is_so = self._watches.is_serving if condition is None else condition()
            status = health_pb2.HealthCheckResponse
            return status(status=status.SERVING if is_so else status.NOT_SERVING)

        identify: _Identify = self._peers.identify

        arrivals, pool = self._arrivals, self._pool

        def watch(messages: Iterator[bytes], context: grpc.ServicerContext, send: Send) -> None:
            try:
                caller = pool.caller or identify(context.auth_context())
                arrival = arrivals.enter(caller, context)
                try:
                    body = next(messages, None)
                finally:
                    arrivals.leave(caller, arrival)
                if arrival.code is not grpc.StatusCode.OK:
                    context.abort(arrival.code, arrival.details)
                if body is None:
                    raise errors.InvalidArgumentError("the call ended without a message, want one")
                request = _parse(health_pb2.HealthCheckRequest.FromString, body)
                self._require_service(request.service)
                opened = self._watches.open(caller, context, send)
            except errors.ShardholdError as exc:
                _refuse(context, code_of(exc), exc.reason, str(exc))
            if not context.add_callback(lambda: self._watches.close(opened)):
                self._watches.close(opened)

        # Otherwise a watcher would hold a worker for as long as it watches.
        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        watch_handler: _Handler = grpc.stream_stream_rpc_method_handler(
            watch, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
        )
        name = f"/{HEALTH_SERVICE}/Check"
        return {
            name: self._make_handler(
                Method(name, health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse, check),
                self.meter.for_health(name),
            ),
            f"/{HEALTH_SERVICE}/Watch": watch_handler,
        }

    def _require_service(self, service: str) -> None:
        if service not in self._services:
            raise errors.NotFoundError("this server has no such service")


def code_of(error: errors.ShardholdError) -> grpc.StatusCode:
    """Return the status of *error*, by the nearest of its bases in `CODES`."""
    return next(CODES[base] for base in type(error).__mro__ if base in CODES)


class _MethodTable(grpc.GenericRpcHandler):
    """Finds a method by its full name; gRPC answers UNIMPLEMENTED for the others.

    A call with too much metadata, which gRPC refuses only once its client has acknowledged the limit, is refused by a
    handler of its own.
    """

    def __init__(self, handlers: Mapping[str, _Handler]) -> None:
        self._handlers = handlers
        self._refusal: _Handler = grpc.stream_unary_rpc_method_handler(_refuse_metadata)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "_Handler | None":
        size = 0
        for name, value in handler_call_details.invocation_metadata or ():
            size += len(name) + len(value)
        return self._handlers.get(handler_call_details.method) if size <= _MAX_METADATA else self._refusal


def _parse(parse: Callable[[bytes], M], body: bytes) -> M:
    try:
        return parse(body)
    except DecodeError as exc:
        raise errors.InvalidArgumentError(
            f"the request does not parse: {len(body)} bytes that are not such a message"
        ) from exc


def _refuse_metadata(_: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
    error = errors.OverloadedError(f"metadata: got more than {_MAX_METADATA} bytes")
    _refuse(context, code_of(error), error.reason, str(error))


def _read_peer(arguments: Arguments) -> dict[str, Sequence[bytes]]:
    """Return the authentication context of a call that gRPC submits."""
    found: dict[str | bytes, Sequence[bytes]] = cygrpc.auth_context(arguments[_EVENT].call) or {}
    return {name if isinstance(name, str) else name.decode(): values for name, values in found.items()}


def _end(context: grpc.ServicerContext, code: grpc.StatusCode, message: str) -> None:
    """End the call from a thread other than its worker's; `ServicerContext.cancel` could not set the code."""
    context._rpc_event.call.cancel(code.value[0], message)  # type: ignore[attr-defined]


def _refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str) -> NoReturn:
    """End the call with *code* and an ErrorInfo."""
    message = message[:_MAX_DETAILS]
    status = status_pb2.Status(code=code.value[0], message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    context.set_trailing_metadata(((_STATUS_DETAILS, status.SerializeToString()),))
    context.abort(code, message)
