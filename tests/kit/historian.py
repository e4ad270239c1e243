"""A process that calls a nexus at random and writes down each call with its answer, for `tests.kit.linearizability`.

`python -P -m tests.kit.historian ADDRESS SOCKET FILE NAME SEED CALLS PATH…` makes CALLS calls on the paths, and adds a
line of JSON to FILE for each. A call whose outcome is not known is made again under the same request id, by the SDK or,
when that gives up, here. Of some changes it hears no answer, so that there is something to repeat.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from shardhold import (
    Client,
    ConflictError,
    DeadlineError,
    Deleted,
    NotFoundError,
    Secret,
    UnavailableError,
    WorkloadAPI,
)
from shardhold import Written as WrittenVersion
from tests.kit.linearizability import Call, Kind, Outcome
from tests.kit.lost_answers import lose_answers

TIMEOUT_S = 20.0  # of one try; the next one has the same request id
LOST = 0.1  # of the answers to changes


class Historian:
    """One worker, and what it knows of each path."""

    def __init__(self, client: Client, chance: random.Random, name: str, paths: list[str]) -> None:
        self._client = client
        self._chance = chance
        self._name = name
        self._known = dict.fromkeys(paths, (0, b""))  # version and incarnation that it met last
        self._made = 0
        for rpc in ("PutSecret", "DeleteSecret"):
            lose_answers(client, rpc, lambda: chance.random() < LOST)

    def make_call(self) -> Call:
        """Make the next call, until its outcome is known."""
        self._made += 1
        path = self._chance.choice(list(self._known))
        kind: Kind = self._chance.choices(("put", "get", "delete"), (5, 4, 1))[0]
        if kind == "put":
            return self._put(path)
        began = time.monotonic_ns()
        if kind == "get":
            outcome, found = _resolve(lambda: self._client.get(path, timeout=TIMEOUT_S))
        else:
            request_id = os.urandom(16)
            outcome, found = _resolve(lambda: self._client.delete(path, request_id=request_id, timeout=TIMEOUT_S))
        ended = time.monotonic_ns()
        if isinstance(found, Secret):
            self._known[path] = (found.version, found.incarnation)
            value = found.fields["value"].decode()
            incarnation = found.incarnation.hex()
            return Call(path, kind, began, ended, outcome, value, version=found.version, incarnation=incarnation)
        self._known[path] = (0, b"")
        version = found.versions[-1] if isinstance(found, Deleted) else 0
        return Call(path, kind, began, ended, outcome, version=version)

    def _put(self, path: str) -> Call:
        value = f"{self._name}.{self._made}"
        version, incarnation = self._known[path]
        expected = version if self._chance.random() < 0.5 else None
        wanted = incarnation if expected and self._chance.random() < 0.5 else b""
        request_id, began = os.urandom(16), time.monotonic_ns()
        outcome, made = _resolve(
            lambda: self._client.put(
                path,
                {"value": value},
                expected_version=expected,
                expected_incarnation=wanted or None,
                request_id=request_id,
                timeout=TIMEOUT_S,
            )
        )
        ended = time.monotonic_ns()
        call = Call(path, "put", began, ended, outcome, value, expected, wanted.hex())
        if not isinstance(made, WrittenVersion):
            return call
        self._known[path] = (made.version, made.incarnation)
        answer = {"version": made.version, "incarnation": made.incarnation.hex()}
        return Call(**asdict(call) | answer)


def _resolve(
    call: Callable[[], WrittenVersion | Secret | Deleted],
) -> tuple[Outcome, WrittenVersion | Secret | Deleted | None]:
    while True:
        try:
            return "ok", call()
        except ConflictError:
            return "conflict", None
        except NotFoundError:
            return "not found", None
        except (DeadlineError, UnavailableError):
            continue


def main() -> None:
    address, socket, file, name, seed, calls, *paths = sys.argv[1:]
    identity = WorkloadAPI(f"unix:{socket}")
    with Client(address, identity) as client, Path(file).open("a", buffering=1) as lines:
        historian = Historian(client, random.Random(f"{seed} {name}"), name, paths)
        for _ in range(int(calls)):
            lines.write(json.dumps(asdict(historian.make_call())) + "\n")
    identity.close()


if __name__ == "__main__":
    main()
