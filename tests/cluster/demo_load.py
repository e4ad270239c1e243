"""Puts of a workload that go on while something happens to the cluster, as the demo shows them."""

import threading
from collections.abc import Callable
from types import TracebackType

from shardhold import Client, Error
from tests.kit.errors import ClusterError
from tests.kit.patience import join

WRITERS = 4
PATIENCE_S = 60.0  # of a put, while the nexus is away
PAUSE_S = 0.005  # between two puts of one writer, so that the machine is not full of them


class Load:
    """Writers with a secret each below *folder*, for as long as the block lasts; the SDK repeats what breaks."""

    def __init__(self, client: Client, folder: str) -> None:
        self._client = client
        self._paths = [f"{folder}/{number}" for number in range(WRITERS)]
        self._acknowledged = dict.fromkeys(self._paths, 0)  # puts; put N has the value N
        self._errors: list[str] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write(path), daemon=True) for path in self._paths]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            join(thread, 60)

    def check(self) -> int:
        """Return how many puts were acknowledged.

        Raises:
            ClusterError: One failed, was lost, or was made twice.
        """
        if self._errors:
            raise ClusterError(f"a put failed: {self._errors[0]}")
        for path, count in self._acknowledged.items():
            secret = self._client.get(path)
            if (secret.version, secret.fields) != (count, {"value": b"%d" % count}):
                raise ClusterError(f"{path} is at version {secret.version}, after {count} puts")
        return sum(self._acknowledged.values())

    def _write(self, path: str) -> Callable[[], None]:
        def write() -> None:
            try:
                while not self._stop.wait(PAUSE_S):
                    number = self._acknowledged[path] + 1
                    self._client.put(path, {"value": b"%d" % number}, timeout=PATIENCE_S)
                    self._acknowledged[path] = number
            except Error as exc:
                self._errors.append(f"{path}: {exc}")

        return write
