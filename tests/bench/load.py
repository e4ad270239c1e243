"""The load generator, a process of its own: jobs come as lines of JSON on stdin, reports go as lines to stdout.

Threads call over one channel, each waiting for its answer before the next call. Requests are built once, so that nexus
and empty server see the same client.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from itertools import cycle
from time import monotonic, perf_counter
from typing import Literal

import grpc
import msgspec

from pilot.dev.ports import HOST
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, WorkloadAPI
from shardhold.v1.secrets_pb2 import GetSecretRequest, PutSecretRequest
from shardhold.v1.secrets_pb2_grpc import SecretServiceStub
from tests.bench.machine import CLIENT_CORE, pin

TIMEOUT_S = 10.0  # of one call
START_TIMEOUT_S = 60.0
FIELDS = {"username": b"application", "password": b"correct horse battery staple"}

Kind = Literal["get", "put", "first"]  # first: get as soon as the server listens and serves
Call = Callable[[], object]


class Job(msgspec.Struct, frozen=True):
    """Work for the generator."""

    kind: Kind
    port: int
    server_name: str  # the DNS name in the server's SVID
    endpoint: str  # Workload API socket of the caller
    paths: tuple[str, ...]
    threads: int = 1
    seconds: float = 1.0
    calls: int = 0  # stop after so many, whatever *seconds* says; 0: after *seconds*


class Report(msgspec.Struct, frozen=True):
    """What a job found."""

    calls: int = 0
    seconds: float = 0.0
    p50_us: float = 0.0  # of one call, as its caller sees it
    p99_us: float = 0.0
    ended: float = 0.0  # when, by the monotonic clock, which all processes share


class Generator:
    """Runs jobs in sequence; channels and identities stay for the next one."""

    def __init__(self) -> None:
        self._identities: dict[str, IdentitySource] = {}
        self._stubs: dict[tuple[int, str], SecretServiceStub] = {}

    def run(self, job: Job) -> Report:
        """Run one job; a call that fails ends everything."""
        if job.kind == "first":
            return self._wait_served(job)
        key = job.port, job.endpoint
        if key not in self._stubs:
            self._stubs[key] = SecretServiceStub(self._connect(job))
        calls = [_make_call(self._stubs[key], job, number) for number in range(job.threads)]
        return _drive(calls, job)

    def _wait_served(self, job: Job) -> Report:
        pause = threading.Event()
        give_up = monotonic() + START_TIMEOUT_S
        self._identify(job.endpoint)
        _wait_listening(job.port, give_up, pause)
        with self._connect(job) as channel:
            get = SecretServiceStub(channel).GetSecret
            while True:
                try:
                    get(GetSecretRequest(path=job.paths[0]), timeout=TIMEOUT_S)
                except grpc.RpcError as exc:
                    if exc.code() is not grpc.StatusCode.UNAVAILABLE or monotonic() > give_up:
                        raise
                    pause.wait(0.001)
                else:
                    return Report(calls=1, ended=monotonic())

    def _connect(self, job: Job) -> PinnedChannel:
        return PinnedChannel(f"{HOST}:{job.port}", self._identify(job.endpoint), server_name=job.server_name)

    def _identify(self, endpoint: str) -> IdentitySource:
        if endpoint not in self._identities:
            self._identities[endpoint] = WorkloadAPI(endpoint)
        return self._identities[endpoint]


def _make_call(stub: SecretServiceStub, job: Job, number: int) -> Call:
    paths = job.paths[number % len(job.paths) :] + job.paths[: number % len(job.paths)]
    if job.kind == "get":
        reads = cycle([GetSecretRequest(path=path) for path in paths])
        return lambda: stub.GetSecret(next(reads), timeout=TIMEOUT_S)
    writes = cycle([PutSecretRequest(path=path, fields=FIELDS) for path in paths])

    def put() -> object:
        request = next(writes)
        request.request_id = os.urandom(16)
        return stub.PutSecret(request, timeout=TIMEOUT_S)

    return put


def _drive(calls: Sequence[Call], job: Job) -> Report:
    latencies: list[list[float]] = [[] for _ in calls]
    failures: list[BaseException] = []
    quota = -(-job.calls // len(calls)) if job.calls else sys.maxsize
    begin = threading.Barrier(len(calls) + 1)
    end = float("inf") if job.calls else job.seconds

    def work(call: Call, taken: list[float]) -> None:
        begin.wait()
        try:
            last = perf_counter()
            until = last + end
            while last < until and len(taken) < quota:
                call()
                now = perf_counter()
                taken.append(now - last)
                last = now
        except grpc.RpcError as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(calls, latencies, strict=True)]
    for thread in threads:
        thread.start()
    begin.wait()
    started = perf_counter()
    for thread in threads:
        thread.join()
    seconds = perf_counter() - started
    if failures:
        raise failures[0]
    taken = sorted(one for each in latencies for one in each)
    p50, p99 = (taken[len(taken) * percent // 100] * 1e6 for percent in (50, 99))
    return Report(len(taken), seconds, p50, p99, monotonic())


def _wait_listening(port: int, give_up: float, pause: threading.Event) -> None:
    """Wait until a server listens: a gRPC channel that found none tries again only after a tenth of a second."""
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        if monotonic() > give_up:
            raise TimeoutError(f"nobody listens on port {port}")
        pause.wait(0.001)


def main() -> None:
    """Answer jobs until stdin ends."""
    pin(os.getpid(), CLIENT_CORE)
    generator = Generator()
    for line in sys.stdin.buffer:
        report = generator.run(msgspec.json.decode(line, type=Job))
        sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
