"""`common.server.edge`: what goes through it, what it refuses, and how errors come out."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import grpc
import pytest
from grpc_health.v1 import health_pb2

from common import errors
from common.server.edge import CODES, Call, GrpcServer, Method, code_of
from keeper.v1 import keeper_pb2 as pb
from tests.common.server.edge_bench import CALLER, DNS, METHOD, SERVICE, Bench
from tests.kit.credentials import certify
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most, patiently
from tests.kit.raw_calls import call
from tests.kit.raw_http2 import DATA, END_STREAM, HEADERS, SETTINGS, RawConnection, raw_connection
from tests.kit.refusal import Outcome
from tests.kit.waiting import WAIT_S, wait_until

HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
MIB = 1024 * 1024


@pytest.fixture
def bench(serve: Callable[..., Bench]) -> Bench:
    """Return a server that answers with the caller's SPIFFE ID."""
    return serve()


def test_method_learns_caller_address_and_deadline(serve: Callable[..., Bench]) -> None:
    """A method gets the SPIFFE ID, the peer's address and the seconds left, or None without a deadline."""
    seen: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        seen.append(call)
        return pb.GetStatusResponse()

    channel = serve(answer).connect()
    assert call(channel, METHOD, timeout=at_most(30)).code is grpc.StatusCode.OK
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    unary(b"")
    assert [one.caller for one in seen] == [CALLER, CALLER]
    assert seen[0].address.startswith("ipv4:127.0.0.1:")
    assert seen[0].deadline is not None
    assert 0 < seen[0].deadline <= at_most(30)
    assert seen[1].deadline is None


def list_errors(family: type[errors.ShardholdError] = errors.ShardholdError) -> list[type[errors.ShardholdError]]:
    return [family, *(error for child in family.__subclasses__() for error in list_errors(child))]


@pytest.mark.parametrize("error", [pytest.param(error, id=error.__name__) for error in list_errors()])
def test_every_error_has_a_code(error: type[errors.ShardholdError]) -> None:
    """The table is total: each domain error has a code, and only a fault of ours is INTERNAL."""
    code = code_of(error("x"))
    assert code is not grpc.StatusCode.OK
    assert (code is grpc.StatusCode.INTERNAL) == (error is errors.ShardholdError)


def test_table_holds_no_strangers() -> None:
    """Every line of the table is an error of ours."""
    assert set(CODES) <= set(list_errors())


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        pytest.param(errors.SealedError("x – ü"), "UNAVAILABLE", "NEXUS_SEALED", id="sealed"),
        pytest.param(errors.RecoveringError("x – ü"), "UNAVAILABLE", "NEXUS_RECOVERING", id="recovering"),
        pytest.param(errors.InvalidArgumentError("x – ü"), "INVALID_ARGUMENT", "INVALID_ARGUMENT", id="argument"),
        pytest.param(errors.DeniedError("x – ü"), "PERMISSION_DENIED", "DENIED", id="denied"),
        pytest.param(errors.NotFoundError("x – ü"), "NOT_FOUND", "NOT_FOUND", id="not found"),
        pytest.param(errors.ConflictError("x – ü"), "ABORTED", "VERSION_CONFLICT", id="check-and-set"),
        pytest.param(errors.WrongStateError("x – ü"), "FAILED_PRECONDITION", "WRONG_STATE", id="state"),
        pytest.param(errors.StatementError("x – ü"), "FAILED_PRECONDITION", "STATEMENT", id="statement"),
        pytest.param(errors.OverloadedError("x – ü"), "RESOURCE_EXHAUSTED", "OVERLOADED", id="overload"),
        pytest.param(errors.CorruptRowError("x – ü"), "DATA_LOSS", "CORRUPT_ROW", id="corrupt row"),
    ],
)
def test_errors_come_out_with_code_message_and_reason(
    serve: Callable[..., Bench], error: Exception, code: str, reason: str
) -> None:
    """A domain error gives its code, its message and google.rpc.ErrorInfo with its stable reason; it is counted."""

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        raise error

    bench = serve(answer)
    assert call(bench.connect(), METHOD) == Outcome(grpc.StatusCode[code], "x – ü", reason)
    assert bench.count_calls(code) == 1


def test_unknown_errors_tell_the_caller_nothing(
    serve: Callable[..., Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    """An exception that is not one of ours is INTERNAL without its text; the log has it."""

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        raise KeyError("planted")

    bench = serve(answer)
    assert call(bench.connect(), METHOD) == Outcome(grpc.StatusCode.INTERNAL, "internal error", "INTERNAL")
    logged = capsys.readouterr()
    assert "planted" in logged.out + logged.err
    assert bench.count_calls("INTERNAL") == 1


def test_long_messages_are_cut(serve: Callable[..., Bench]) -> None:
    """An error's message travels in headers, which have a limit: it is cut, not lost."""

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        raise errors.NotFoundError("x" * 100_000)

    outcome = call(serve(answer).connect(), METHOD)
    assert (outcome.code, outcome.reason, outcome.details) == (grpc.StatusCode.NOT_FOUND, "NOT_FOUND", 2000 * "x")


@pytest.mark.parametrize(
    ("uris", "method", "body", "code"),
    [
        pytest.param([CALLER, CALLER + "x"], METHOD, b"", "UNAUTHENTICATED", id="two URI SANs"),
        pytest.param(["spiffe://other.test/a"], METHOD, b"", "UNAUTHENTICATED", id="foreign trust domain"),
        pytest.param([CALLER, CALLER + "x"], METHOD, b"\xff", "UNAUTHENTICATED", id="identity comes before parsing"),
        pytest.param([CALLER, CALLER + "x"], HEALTH, b"", "UNAUTHENTICATED", id="health needs an identity"),
        pytest.param([CALLER], METHOD, b"\xff\xff\xff", "INVALID_ARGUMENT", id="no protobuf"),
        pytest.param([CALLER], METHOD, b"\x0a\x7f", "INVALID_ARGUMENT", id="protobuf that ends early"),
        pytest.param([CALLER], METHOD, b"\x00", "INVALID_ARGUMENT", id="field number 0"),
        pytest.param([CALLER], f"/{SERVICE}/Nothing", b"", "UNIMPLEMENTED", id="unknown method"),
        pytest.param([CALLER], "/other.Service/GetStatus", b"", "UNIMPLEMENTED", id="unknown service"),
        pytest.param([CALLER], METHOD + "/", b"", "UNIMPLEMENTED", id="slash behind the method"),
        pytest.param([CALLER], METHOD, (5 * MIB + 1) * b"\x00", "RESOURCE_EXHAUSTED", id="message too large"),
    ],
)
def test_what_no_method_gets_to_see(
    serve: Callable[..., Bench], uris: list[str], method: str, body: bytes, code: str
) -> None:
    """Calls without identity, malformed or too large are refused before the method; the next call is served."""
    reached: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        reached.append(call)
        return pb.GetStatusResponse()

    bench = serve(answer)
    assert call(bench.connect(*uris), method, body).code is grpc.StatusCode[code]
    assert not reached
    assert call(bench.connect(), METHOD).code is grpc.StatusCode.OK


@pytest.mark.parametrize("method", [METHOD, HEALTH])
def test_nothing_is_served_without_an_svid_of_its_own(serve: Callable[..., Bench], method: str) -> None:
    """An open connection outlives the server's SVID: calls on it are refused until there is another."""
    reached: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        reached.append(call)
        return pb.GetStatusResponse()

    bench = serve(answer)
    channel = bench.connect()
    assert call(channel, method).code is grpc.StatusCode.OK
    reached.clear()
    svid, bench.identity.svid = bench.identity.svid, None
    assert call(channel, method) == Outcome(grpc.StatusCode.UNAVAILABLE, "no SVID", "IDENTITY_UNAVAILABLE")
    assert not reached
    bench.identity.svid = svid
    assert call(channel, method).code is grpc.StatusCode.OK


def test_large_messages_pass_up_to_the_limit(serve: Callable[..., Bench]) -> None:
    """Messages of up to 5 MiB pass in both directions."""
    size = 5 * MIB - 16

    def answer(call: Call, request: pb.GetStatusResponse) -> pb.GetStatusResponse:
        return pb.GetStatusResponse(version=request.version)

    bench = serve()
    server = GrpcServer(
        [Method(METHOD, pb.GetStatusResponse, pb.GetStatusResponse, answer)],
        address="127.0.0.1:0",
        identity=FixedIdentity(bench.ca.issue("/shardhold/keeper/k1", dns=DNS)),
        trust_domain="example.test",
    )
    port = server.start()
    credentials = certify(bench.ca, uris=[CALLER])
    options = [("grpc.ssl_target_name_override", DNS), ("grpc.max_receive_message_length", 5 * MIB)]
    secrets = grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate)
    with grpc.secure_channel(f"127.0.0.1:{port}", secrets, options=options) as channel:
        outcome = call(channel, METHOD, pb.GetStatusResponse(version=size * "x").SerializeToString())
    server.stop(0)
    assert outcome.code is grpc.StatusCode.OK, outcome.details
    assert len(outcome.answer) > size


def test_large_headers_are_refused(bench: Bench) -> None:
    """A call with 16 KiB of metadata is refused."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = bench.connect().unary_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        unary(b"", metadata=(("x", 17 * 1024 * "y"),), timeout=at_most(10))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize(
    ("method", "size"),
    [
        pytest.param(METHOD, 20 * 1024, id="a call, 20 KiB"),
        pytest.param(METHOD, 2 * MIB, id="a call, 2 MiB"),
        pytest.param(WATCH, 20 * 1024, id="a watch, 20 KiB"),
    ],
)
def test_large_headers_are_refused_before_the_limit_is_acknowledged(bench: Bench, method: str, size: int) -> None:
    """A client that has not acknowledged the limit of metadata is refused all the same, before any work."""
    message = pb.GetStatusRequest().SerializeToString()
    with connect_raw(bench, acknowledges=False) as raw:
        stream = raw.call(method, message, metadata=[("x", size * "y")])
        answer = raw.receive_until(HEADERS, stream)
        assert answer is not None
        assert answer.flags & END_STREAM  # a refusal alone, no answer
    with connect_raw(bench, acknowledges=False) as raw:
        stream = raw.call(method, message, metadata=[("x", 15 * 1024 * "y")])
        answer = raw.receive_until(HEADERS, stream)
        assert answer is not None
        assert not answer.flags & END_STREAM


def test_a_client_that_acknowledges_no_settings_is_cut_off(bench: Bench) -> None:
    """A connection whose client acknowledges no limits is closed within seconds; one whose client does goes on."""
    with connect_raw(bench) as honest, connect_raw(bench, acknowledges=False) as silent:
        assert honest.receive_until(SETTINGS, 0) is not None
        while silent.receive() is not None:
            pass
        assert honest.receive_until(DATA, honest.call(METHOD)) is not None


def connect_raw(bench: Bench, *, acknowledges: bool = True) -> AbstractContextManager[RawConnection]:
    credentials = certify(bench.ca, uris=[CALLER])
    return raw_connection(bench.port, credentials, server_name=DNS, acknowledges=acknowledges)


def test_a_method_can_ask_whether_its_caller_still_waits(serve: Callable[..., Bench]) -> None:
    """A method is told that it is wanted until its caller cancels."""
    entered, left = threading.Event(), threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        assert call.is_wanted()
        entered.set()
        wait_until(lambda: not call.is_wanted(), what="the caller leaves")
        left.set()
        return pb.GetStatusResponse()

    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = serve(answer).connect().unary_unary(METHOD)
    waiting = unary.future(b"")
    assert entered.wait(at_most(WAIT_S))
    waiting.cancel()
    assert left.wait(at_most(WAIT_S))


def test_compressed_messages_are_refused(bench: Bench) -> None:
    """A compressed message, which could unpack to gigabytes, is not unpacked."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = bench.connect().unary_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        unary(100_000 * b"\x00", compression=grpc.Compression.Gzip, timeout=at_most(10))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_caller_with_too_many_calls_is_refused_alone(serve: Callable[..., Bench]) -> None:
    """A caller at its own limit gets RESOURCE_EXHAUSTED and is counted, another one is served; later it is, too."""
    entered, release = threading.Semaphore(0), threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        if call.caller == CALLER:
            entered.release()
            release.wait(at_most(WAIT_S))
        return pb.GetStatusResponse()

    bench = serve(answer, workers=3, max_calls=8, max_calls_per_caller=2)
    channel, other = bench.connect(), bench.connect(f"{CALLER}0")
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(call, channel, METHOD) for _ in range(2)]
        assert all(entered.acquire(timeout=at_most(WAIT_S)) for _ in running)
        refused = call(channel, METHOD)
        assert refused.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.details == "more than 2 calls of this caller wait or run"
        assert bench.count_calls("RESOURCE_EXHAUSTED") == 1
        assert [call(other, METHOD).code for _ in range(10)] == [grpc.StatusCode.OK] * 10
        release.set()
        assert {one.result().code for one in running} == {grpc.StatusCode.OK}
    wait_until(lambda: call(channel, METHOD).code is grpc.StatusCode.OK, what="a call after the rush")


def test_calls_beyond_the_limit_are_refused(serve: Callable[..., Bench]) -> None:
    """With the limit of calls in flight and queued, one more is RESOURCE_EXHAUSTED; later it is served."""
    entered, release = threading.Semaphore(0), threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        entered.release()
        release.wait(at_most(WAIT_S))
        return pb.GetStatusResponse()

    channel = serve(answer, workers=2, max_calls=2).connect()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(call, channel, METHOD) for _ in range(2)]
        assert all(entered.acquire(timeout=at_most(WAIT_S)) for _ in running)
        assert call(channel, METHOD).code is grpc.StatusCode.RESOURCE_EXHAUSTED
        release.set()
        assert {one.result().code for one in running} == {grpc.StatusCode.OK}
    wait_until(lambda: call(channel, METHOD).code is grpc.StatusCode.OK, what="a call after the rush")


def test_call_whose_deadline_passed_in_the_queue_is_not_begun(serve: Callable[..., Bench]) -> None:
    """A call that waits for a worker beyond its deadline never reaches its method."""
    entered, release = threading.Semaphore(0), threading.Event()
    begun: list[Call] = []

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        begun.append(call)
        entered.release()
        release.wait(at_most(WAIT_S))
        return pb.GetStatusResponse()

    bench = serve(answer, workers=1)
    channel = bench.connect()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call, channel, METHOD)
        assert entered.acquire(timeout=at_most(WAIT_S))
        assert call(channel, METHOD, timeout=0.2).code is grpc.StatusCode.DEADLINE_EXCEEDED
        release.set()
        assert first.result().code is grpc.StatusCode.OK
    assert call(channel, METHOD).code is grpc.StatusCode.OK  # the only worker is past the second call now
    assert len(begun) == 2


def test_taken_port_is_a_configuration_error(bench: Bench, serve: Callable[..., Bench]) -> None:
    """Two servers never silently share a port."""
    with pytest.raises(errors.ConfigError, match=f"listen.address: .*{bench.port}"):
        serve(address=f"127.0.0.1:{bench.port}")


def read_health(outcome: Outcome) -> int:
    assert outcome.code is grpc.StatusCode.OK, outcome
    return health_pb2.HealthCheckResponse.FromString(outcome.answer).status  # type: ignore[no-any-return]


def test_health_of_a_condition_follows_the_condition(serve: Callable[..., Bench]) -> None:
    """It is asked at that moment, whether or not the server serves; it cannot be watched."""
    held: list[int] = []
    bench = serve(conditions={"holds": lambda: bool(held)})
    channel = bench.connect()
    body = health_pb2.HealthCheckRequest(service="holds").SerializeToString()
    bench.server.set_serving(True)
    assert read_health(call(channel, HEALTH, body)) == health_pb2.HealthCheckResponse.NOT_SERVING
    held.append(1)
    assert read_health(call(channel, HEALTH, body)) == health_pb2.HealthCheckResponse.SERVING
    watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    with pytest.raises(grpc.RpcError) as refused:
        next(watch(body, timeout=at_most(10)))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_is_counted_as_a_probe(bench: Bench) -> None:
    """It comes every few seconds, and would hide what callers do."""
    channel = bench.connect()
    call(channel, HEALTH)
    call(channel, METHOD)
    names = {
        (sample.name, *sample.labels.values())
        for family in bench.registry.collect()
        for sample in family.samples
        if sample.name in ("shardhold_calls_total", "shardhold_probes_total")
    }
    assert names == {("shardhold_probes_total", "Check", "OK"), ("shardhold_calls_total", "GetStatus", "OK")}


def test_load_of_a_port(serve: Callable[..., Bench]) -> None:
    """Its connections, the call that its one worker runs, and those that wait."""
    go_on = threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        go_on.wait(at_most(WAIT_S))
        return pb.GetStatusResponse()

    bench = serve(answer, workers=1)
    assert bench.server.connections == 0
    channels = [bench.connect() for _ in range(2)]
    with ThreadPoolExecutor(3) as callers:
        calls = [callers.submit(call, channel, METHOD) for channel in (*channels, channels[0])]
        try:
            wait_until(lambda: (bench.server.calls_running, bench.server.calls_waiting) == (1, 2))
            assert bench.server.connections == 2
        finally:
            go_on.set()
        assert [one.result(at_most(WAIT_S)).code for one in calls] == 3 * [grpc.StatusCode.OK]
    wait_until(lambda: (bench.server.calls_running, bench.server.calls_waiting) == (0, 0))


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health_follows_set_serving(bench: Bench, service: str) -> None:
    """Health is NOT_SERVING until told otherwise, for "" and for each service, to any peer with an identity."""
    channel = bench.connect("spiffe://example.test/anybody")
    body = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    assert read_health(call(channel, HEALTH, body)) == health_pb2.HealthCheckResponse.NOT_SERVING
    bench.server.set_serving(True)
    assert read_health(call(channel, HEALTH, body)) == health_pb2.HealthCheckResponse.SERVING
    bench.server.set_serving(False)
    assert read_health(call(channel, HEALTH, body)) == health_pb2.HealthCheckResponse.NOT_SERVING


def test_health_of_unknown_services(bench: Bench) -> None:
    """Health knows only the services that are served, both to check and to watch."""
    channel = bench.connect()
    body = health_pb2.HealthCheckRequest(service="other").SerializeToString()
    assert call(channel, HEALTH, body).code is grpc.StatusCode.NOT_FOUND
    stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    with pytest.raises(grpc.RpcError) as caught:
        next(stream(body, timeout=at_most(10)))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_watchers_hold_no_worker_and_no_stop(serve: Callable[..., Bench]) -> None:
    """With more watchers than workers calls are still served; all see changes, and a stop ends them at once."""
    bench = serve(workers=1)
    channel = bench.connect()
    stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(WATCH)
    watchers = [stream(b"", timeout=at_most(WAIT_S)) for _ in range(4)]
    parse = health_pb2.HealthCheckResponse.FromString
    assert [parse(next(one)).status for one in watchers] == 4 * [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert call(channel, METHOD).code is grpc.StatusCode.OK
    bench.server.set_serving(True)
    assert [parse(next(one)).status for one in watchers] == 4 * [health_pb2.HealthCheckResponse.SERVING]
    stopper = threading.Thread(target=bench.server.stop, args=(WAIT_S,))
    stopper.start()
    rest = [[parse(item).status for item in one] for one in watchers]
    assert rest == 4 * [[health_pb2.HealthCheckResponse.NOT_SERVING]]
    stopper.join(WAIT_S / 2)
    assert not stopper.is_alive()


def test_stop_lets_calls_in_flight_end(serve: Callable[..., Bench]) -> None:
    """A stop refuses new calls at once and answers those that had begun."""
    entered, release = threading.Event(), threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        entered.set()
        release.wait(at_most(WAIT_S))
        return pb.GetStatusResponse(version="done")

    bench = serve(answer)
    channel, other = bench.connect(), bench.connect()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(call, channel, METHOD)
        assert patiently(entered.wait, WAIT_S)
        stopping = pool.submit(bench.server.stop, WAIT_S)
        wait_until(lambda: call(other, METHOD, timeout=1).code is grpc.StatusCode.UNAVAILABLE, what="refusal")
        release.set()
        assert running.result().code is grpc.StatusCode.OK
        stopping.result()


def test_stop_cuts_off_what_takes_too_long(serve: Callable[..., Bench]) -> None:
    """After its grace period a stop no longer waits for calls."""
    entered, release = threading.Event(), threading.Event()

    def answer(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        entered.set()
        release.wait(at_most(WAIT_S))
        return pb.GetStatusResponse()

    bench = serve(answer)
    channel = bench.connect()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call, channel, METHOD, timeout=at_most(WAIT_S))
        assert patiently(entered.wait, WAIT_S)
        bench.server.stop(0.1)
        assert running.result().code is grpc.StatusCode.UNAVAILABLE
        release.set()
