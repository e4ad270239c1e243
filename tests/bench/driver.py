"""The other end of the load generator: puts a server under load and reports the result."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tests.bench.load import Job, Kind, Report
from tests.bench.machine import SERVER_CORE, cpu_seconds, pin

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Server:
    """A server, and who calls it."""

    pid: int
    port: int
    server_name: str  # the DNS name in its SVID
    endpoint: str  # Workload API socket of the caller


@dataclass(frozen=True)
class Load:
    """The result of one side of one round."""

    per_s: float
    cpu_us: float  # of the server, for each call
    p50_us: float  # of one call, as its caller sees it
    p99_us: float
    busy: float  # share of its core that the server used


class Driver:
    """One load generator; jobs run in sequence."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", "-m", "tests.bench.load"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        """End the generator."""
        self._process.kill()
        self._process.communicate()

    def wait_served(self, server: Server, path: str) -> float:
        """Wait until *server* answers a first read; return that time, by the monotonic clock."""
        return self._run(_make_job(server, "first", [path])).ended

    def call(self, server: Server, kind: Kind, paths: Sequence[str], *, calls: int, threads: int = 8) -> None:
        """Make a number of calls."""
        self._run(_make_job(server, kind, paths, threads=threads, calls=calls))

    def drive(self, server: Server, kind: Kind, paths: Sequence[str], *, seconds: float, threads: int = 8) -> Load:
        """Make calls for a number of seconds, with the server on a core of its own."""
        pin(server.pid, SERVER_CORE)  # each time: gRPC starts threads when it needs them
        before = cpu_seconds(server.pid)
        report = self._run(_make_job(server, kind, paths, threads=threads, seconds=seconds))
        used = cpu_seconds(server.pid) - before
        return Load(
            per_s=report.calls / report.seconds,
            cpu_us=used / report.calls * 1e6,
            p50_us=report.p50_us,
            p99_us=report.p99_us,
            busy=used / report.seconds,
        )

    def _run(self, job: Job) -> Report:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(msgspec.json.encode(job) + b"\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError("the load generator ended: what it wrote above says why")
        return msgspec.json.decode(line, type=Report)


def _make_job(
    server: Server, kind: Kind, paths: Sequence[str], *, threads: int = 1, seconds: float = 0.0, calls: int = 0
) -> Job:
    return Job(
        kind=kind,
        port=server.port,
        server_name=server.server_name,
        endpoint=server.endpoint,
        paths=tuple(paths),
        threads=threads,
        seconds=seconds,
        calls=calls,
    )
