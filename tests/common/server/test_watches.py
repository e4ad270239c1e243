"""Watches of gRPC health by peers that read nothing: they hold neither a worker nor whoever changes the status."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack

import grpc
import pytest

from common.errors import OverloadedError
from common.server.watches import Send, Watches
from tests.common.server.edge_bench import CALLER, DNS, METHOD, Bench
from tests.kit.credentials import certify
from tests.kit.patience import at_most, join
from tests.kit.raw_calls import call
from tests.kit.raw_http2 import DATA, HEADERS, RST_STREAM, RawConnection, raw_connection
from tests.kit.waiting import wait_until

WATCH = "/grpc.health.v1.Health/Watch"
STALLER = "spiffe://example.test/team/staller"


@pytest.fixture
def bench(serve: Callable[..., Bench]) -> Bench:
    """A server with two workers."""
    return serve(workers=2)


@pytest.fixture
def stalled(bench: Bench) -> Iterator[list[RawConnection]]:
    """Two connections of one caller, each with four watches whose window is 0."""
    with ExitStack() as stack:
        connections = [stack.enter_context(stall(bench)) for _ in range(2)]
        for connection in connections:
            streams = [connection.call(WATCH) for _ in range(4)]
            assert connection.receive_until(HEADERS, streams[-1]) is not None
        yield connections


def stall(bench: Bench) -> AbstractContextManager[RawConnection]:
    return raw_connection(bench.port, certify(bench.ca, uris=[STALLER]), server_name=DNS, window=0)


def test_peers_that_take_nothing_hold_nobody(bench: Bench, stalled: list[RawConnection]) -> None:
    """With more stalled watches than workers calls are answered, and a change of the status returns at once."""

    def tell() -> None:
        for serving in (True, False, True):
            bench.server.set_serving(serving)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    join(teller, 5)
    channel = bench.connect()
    for _ in range(8):
        assert call(channel, METHOD).code is grpc.StatusCode.OK


def test_others_hear_of_changes(bench: Bench, stalled: list[RawConnection]) -> None:
    """A watch that is read hears of each change beside watches that are not."""
    stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = bench.connect().unary_stream(WATCH)
    watch = stream(b"", timeout=at_most(30))
    assert next(watch) == b"\x08\x02"
    bench.server.set_serving(True)
    assert next(watch) == b"\x08\x01"


def test_what_does_not_drain_is_ended(bench: Bench, stalled: list[RawConnection]) -> None:
    """A peer that takes nothing for some seconds loses its watch, and may open another one."""
    assert stalled[0].receive_until(RST_STREAM, 1) is not None
    assert stalled[1].receive_until(RST_STREAM, 1) is not None
    with raw_connection(bench.port, certify(bench.ca, uris=[STALLER]), server_name=DNS) as honest:
        wait_until(lambda: is_told(honest), what="a watch beside the old ones")


def is_told(connection: RawConnection) -> bool:
    """Open a watch, and return whether its first answer is a status rather than a refusal."""
    stream = connection.call(WATCH)
    while (frame := connection.receive()) is not None:
        if frame.stream == stream and frame.kind == DATA:
            return True
        if frame.stream == stream and frame.flags & 1:  # END_STREAM: trailers alone
            return False
    return False


def test_a_caller_has_few_watches(bench: Bench, stalled: list[RawConnection]) -> None:
    """A caller's ninth watch is refused, on whatever connection it comes; other callers have theirs."""
    with raw_connection(bench.port, certify(bench.ca, uris=[STALLER]), server_name=DNS) as ninth:
        assert not is_told(ninth)
    with raw_connection(bench.port, certify(bench.ca, uris=[CALLER]), server_name=DNS) as other:
        assert is_told(other)


def test_a_watch_that_gets_no_thread_is_ended_alone() -> None:
    """Where the system gives no thread for one watch, that watch is ended and the others are told."""
    work: list[Callable[[], None]] = []
    told: list[tuple[str, bool]] = []
    ended: list[str] = []
    threads_left = 3

    def start_thread(target: Callable[[], None]) -> None:
        nonlocal threads_left
        if not threads_left:
            raise RuntimeError("can't start new thread")
        threads_left -= 1
        work.append(target)

    def run_threads() -> None:
        while work:
            work.pop()()

    def tell(name: str) -> Send:
        return lambda status: told.append((name, status is not None and status.status == status.SERVING))

    watches = Watches[str](lambda name, code, details: ended.append(name), start_thread=start_thread)
    for name in ("one", "two"):
        watches.open(CALLER, name, tell(name))
    run_threads()
    watches.set_serving(True)
    run_threads()
    (last,) = ended
    assert sorted(told) == sorted([("one", False), ("two", False), ({"one": "two", "two": "one"}[last], True)])
    with pytest.raises(OverloadedError, match="no thread"):
        watches.open(CALLER, "three", tell("three"))
    threads_left = 1
    watches.open(CALLER, "three", tell("three"))
    run_threads()
    assert told[-1] == ("three", True)


def test_a_watch_that_gets_no_thread_for_its_next_status_is_ended() -> None:
    """A status that changed while another one was on its way also ends the watch if there is no thread for it."""
    work: list[Callable[[], None]] = []
    ended: list[str] = []

    def start_thread(target: Callable[[], None]) -> None:
        if ended or work:
            raise RuntimeError("can't start new thread")
        work.append(target)

    watches = Watches[str](lambda name, code, details: ended.append(name), start_thread=start_thread)
    watches.open(CALLER, "one", lambda status: watches.set_serving(True))
    work[0]()
    assert ended == ["one"]
