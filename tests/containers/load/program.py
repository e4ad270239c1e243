"""Readers and writers of one workload, as a program in a container. It says what it sees as lines of JSON.

    program.py write   puts and gets until standard input ends, then says what the store has to hold: the ledger
    program.py check   reads a ledger from standard input, and everything that it names from the store

Each secret has one writer, which puts number 1, 2, 3 … and goes on to the next only when the last was acknowledged; a
put that failed is repeated under its request id. So version N holds number N, and nothing else is ever right.
"""

import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from shardhold import Client, Error

WRITERS, READERS, PATHS_EACH = 3, 2, 4
PAUSE_S = 0.04  # between two calls of one worker, so that the machine is not full of them
TIMEOUT_S = 120.0  # of a call; far longer than the nexus is ever away
KEPT = 100  # versions of one secret
PROGRESS_S = 0.1
GAP_S = 0.5  # without any answer: worth a line


@dataclass
class Secret:
    """One secret: the number that is being put, and the one that was acknowledged last."""

    path: str
    tried: int = 0
    acknowledged: int = 0


def make_value(path: str, number: int) -> bytes:
    """Return the one right value of put *number*; some are longer than a page of the database."""
    return f"{path}#{number}#".encode() * (300 if number % 5 == 0 else 5)


class Report:
    """What was seen, one line at a time. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answered_at = time.monotonic()
        self.answered = {"put": 0, "get": 0}
        self._said = 0

    def say(self, event: str, **facts: object) -> None:
        with self._lock:
            sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
            sys.stdout.flush()

    def count(self, kind: str) -> None:
        """Count an answer, and say how long there was none."""
        with self._lock:
            now = time.monotonic()
            gap, self._answered_at = now - self._answered_at, now
            self.answered[kind] += 1
        if gap > GAP_S:
            self.say("gap", seconds=round(gap, 2))

    @contextmanager
    def watched(self, what: str) -> Iterator[None]:
        """Say what a call, or one try of it, failed with."""
        try:
            yield
        except (Error, grpc.RpcError) as exc:
            text = (
                f"{exc.code()}: {exc.details()}" if isinstance(exc, grpc.RpcError) else f"{type(exc).__name__}: {exc}"
            )
            self.say(what, error=text)
            raise


class Load:
    """The workers."""

    def __init__(self, client: Client, report: Report) -> None:
        self._client = client
        self._report = report
        self._stop = threading.Event()
        self.secrets = [
            [Secret(f"team/app/load/{os.urandom(4).hex()}") for _ in range(PATHS_EACH)] for _ in range(WRITERS)
        ]
        methods: Any = client._methods
        methods |= {name: self._watch(method) for name, method in methods.items()}

    def run(self) -> None:
        """Work until standard input ends."""
        threads = [threading.Thread(target=self._write, args=(own,)) for own in self.secrets]
        threads += [threading.Thread(target=self._read) for _ in range(READERS)]
        threads += [threading.Thread(target=self._tell)]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._stop.set()
        for thread in threads:
            thread.join()

    def _write(self, own: list[Secret]) -> None:
        while not self._stop.wait(PAUSE_S):
            secret = random.choice(own)
            secret.tried += 1
            request_id = os.urandom(16)
            while not self._put(secret, request_id):
                if self._stop.wait(PAUSE_S):
                    return

    def _put(self, secret: Secret, request_id: bytes) -> bool:
        fields = {"value": make_value(secret.path, secret.tried)}
        try:
            with self._report.watched("call failed"):
                written = self._client.put(secret.path, fields, request_id=request_id)
        except Error:
            return False
        if written.version != secret.tried:
            self._report.say("wrong", path=secret.path, want=secret.tried, got=f"version {written.version}")
        secret.acknowledged = secret.tried
        self._report.count("put")
        return True

    def _read(self) -> None:
        secrets = [secret for own in self.secrets for secret in own]
        while not self._stop.wait(PAUSE_S):
            secret = random.choice(secrets)
            least = secret.acknowledged
            if not least:
                continue
            try:
                with self._report.watched("call failed"):
                    found = self._client.get(secret.path)
            except Error:
                continue
            self._report.count("get")
            if not least <= found.version <= secret.tried:
                self._report.say("wrong", path=secret.path, want=f"{least} to {secret.tried}", got=found.version)
            elif found.fields["value"] != make_value(secret.path, found.version):
                self._report.say("wrong", path=secret.path, want=found.version, got="another value")

    def _tell(self) -> None:
        while not self._stop.wait(PROGRESS_S):
            self._report.say("progress", **self._report.answered)

    def _watch(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> Any:
            with self._report.watched("try failed"):
                return method(request, **options)

        return call


def write(client: Client, report: Report) -> None:
    """Run the load."""
    load = Load(client, report)
    load.run()
    report.say("ledger", **{secret.path: [secret.acknowledged, secret.tried] for own in load.secrets for secret in own})


def check(client: Client, report: Report) -> None:
    """Read every version that is kept of every secret, and say which is not what was written."""
    ledger: dict[str, tuple[int, int]] = json.load(sys.stdin)
    wanted = [
        (path, version)
        for path, (least, most) in ledger.items()
        for version in range(max(1, most - KEPT + 1), least + 1)
    ]

    def look(one: tuple[str, int]) -> None:
        path, version = one
        try:
            found = client.get(path, version=version).fields["value"]
        except Error as exc:
            report.say("wrong", path=path, want=version, got=f"{type(exc).__name__}: {exc}")
            return
        if found != make_value(path, version):
            report.say("wrong", path=path, want=version, got="another value")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, wanted))
    for path, (least, most) in ledger.items():
        newest = client.get(path).version if least else least
        if not least <= newest <= most:
            report.say("wrong", path=path, want=f"{least} to {most}", got=newest)
    report.say("checked", versions=len(wanted))


if __name__ == "__main__":
    with Client(timeout=TIMEOUT_S) as shared:
        {"write": write, "check": check}[sys.argv[1]](shared, Report())
