"""Calls while root key and KEK are replaced again and again and the keyring job runs, beside the same calls without."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import grpc

from shardhold.v1 import root_pb2 as pb
from tests.bench.driver import Load
from tests.bench.load import Kind
from tests.bench.rounds import compare, interleave
from tests.bench.row import Row, Target, at_most, make_row, microseconds, per_second
from tests.bench.stage import Stage
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most as within

_SHARE, _MOST_ROWS = 5, 20_000  # of the rows that the job alone is measured with; each is put by a call
_FILLERS = 32
_PATHS = [f"bench/rotated/{number}" for number in range(320)]  # the rows are their versions, of which 100 are kept
_CALLERS = 4
_TIMEOUT_S = 20.0
_LOOK_S = 0.02
_MOST = 3.0  # times p99 without a rotation


def rotating(stage: Stage) -> Iterator[Row]:
    """Measure reads and writes while rotations follow one another, and the keyring job has rows to bring."""
    rows = min(stage.pace.rows // _SHARE, _MOST_ROWS)
    stage.driver.call(stage.nexus, "put", _PATHS, calls=rows, threads=_FILLERS)
    yield from _compare(stage, "get", "GetSecret", _PATHS)
    yield from _compare(stage, "put", "PutSecret", _PATHS)


def _compare(stage: Stage, kind: Kind, name: str, paths: list[str]) -> Iterator[Row]:
    operator = Operator(stage.cluster)

    def drive(*, beside: Callable[[], contextlib.AbstractContextManager[object]]) -> Load:
        with beside():
            return stage.drive(stage.nexus, kind, paths, threads=_CALLERS)

    drive(beside=contextlib.nullcontext)  # warm
    pairs = interleave(
        lambda: drive(beside=operator.rotating),
        lambda: drive(beside=contextlib.nullcontext),
        rounds=stage.pace.rounds,
    )
    p99 = compare(pairs, lambda load: load.p99_us)
    work = f"{name} while {operator.rotations // stage.pace.rounds} rotations and their job run; without: p99"
    yield make_row(work, p99, microseconds, at_most(_MOST, "×", p99.ratio.median))
    yield make_row("… p50", compare(pairs, lambda load: load.p50_us), microseconds, Target("–"))
    yield make_row(f"… calls of {_CALLERS} callers", compare(pairs, lambda load: load.per_s), per_second, Target("–"))


class Operator:
    """Rotates a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._root = cluster.superuser.root
        self._pause = threading.Event()
        self._stop = threading.Event()
        self.rotations = 0

    @contextlib.contextmanager
    def rotating(self) -> Iterator[None]:
        """Rotate for as long as the block runs; afterwards wait until the job has nothing left to do."""
        failures: list[grpc.RpcError] = []

        def work() -> None:
            try:
                while not self._stop.is_set():
                    self._rotate()
            except grpc.RpcError as exc:
                failures.append(exc)

        self._stop.clear()
        thread = threading.Thread(target=work, name="operator")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
        if failures:
            raise failures[0]
        self._cluster.wait("the keyring job has nothing to do", lambda: not self._look().HasField("job"), timeout=60)

    def _rotate(self) -> None:
        request = pb.StartOperationRequest(
            operation_id=os.urandom(16), depth=pb.DEPTH_ROTATE, reason="bench", force=True, without_backup="bench"
        )
        self._root.StartOperation(request, timeout=within(_TIMEOUT_S))
        while self._look().HasField("operation"):
            self._pause.wait(_LOOK_S)
        self.rotations += 1

    def _look(self) -> pb.GetOperationResponse:
        return self._root.GetOperation(pb.GetOperationRequest(), timeout=within(_TIMEOUT_S))
