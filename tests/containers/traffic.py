"""Load on a stack, from a container of its own: what its callers see, and what the store has to hold afterwards.

Rules: a try that failed and was made good by another one is no failed call, but it is told. A wrong value is never
right; `flowing` fails for it at its end. The ledger of all that was acknowledged outlives the program.
"""

import json
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.containers.stack import AT_EASE, KEEPERS, NEXUS, UNTIL_TERM, Override, Stack

FOLDER = str(Path(__file__).parent / "load")
UNASKED = {"test": ["CMD", "true"], "interval": "5s", "timeout": "60s", "retries": 20}  # `up --wait` wants a check
PROGRAM = ("python3", "/load/program.py")
IDENTITY = ("dev", "identity", "--dir", "/run/shardhold", "--folders", "/run/identity", "--as", "/team/app")
CHECK_S = 1200.0  # after half an hour of load
END_S = 180.0  # calls in flight may take as long as their time-out

Ledger = Mapping[str, Any]


def with_load(*, lifetime_s: int = 3600) -> Override:
    """Return what goes over docker-compose.yml, so that `flowing` works: a workload that may write as well as read.

    SVIDs live for *lifetime_s* seconds; by default far longer than a test, which then sees no change of connections.
    Keepers are healthy unasked: to ask them would take a fifth of a processor from the load.
    """
    return {
        "services": {
            **{name: {**AT_EASE, "healthcheck": UNASKED} for name in KEEPERS},
            "nexus": NEXUS,
            "identity": {**AT_EASE, "command": [*IDENTITY, "--lifetime", str(lifetime_s)]},
            "policy": {"volumes": [f"{FOLDER}:/app:ro"]},
            "app": AT_EASE,
            "load": {
                "image": "shardhold/pilot:${SHARDHOLD_TAG:-dev}",
                "pull_policy": "never",
                "read_only": True,
                "cap_drop": ["ALL"],
                "mem_limit": "256m",
                "networks": ["clients"],
                "entrypoint": ["python3", "-c", UNTIL_TERM],
                "environment": {
                    "SHARDHOLD_ADDRESS": "nexus:8553",
                    "SPIFFE_ENDPOINT_SOCKET": "unix:/run/identity/workload.sock",
                },
                "volumes": [f"{FOLDER}:/load:ro", "identity-app:/run/identity:ro"],
            },
        }
    }


@dataclass
class Traffic:
    """What was seen so far. Made by `flowing`."""

    stack: Stack
    answered: dict[str, int] = field(default_factory=lambda: {"put": 0, "get": 0})
    reports: int = 0  # of progress
    failed_tries: list[str] = field(default_factory=list)
    failed_calls: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)  # seconds without any answer
    ledger: Ledger | None = None
    ended: bool = False

    def wait_answered(self, count: int = 10) -> None:
        """Wait for *count* puts and gets that are answered from now on."""
        later = self.reports + 2  # the next one may have been made before
        self.stack.wait("the load tells of its progress", lambda: self.ended or self.reports >= later)
        wanted = {kind: number + count for kind, number in self.answered.items()}
        self.stack.wait(
            f"{count} more puts and gets; failed: {self.failed_calls[-3:] or self.failed_tries[-3:]}",
            lambda: self.ended or all(self.answered[kind] >= number for kind, number in wanted.items()),
        )
        assert not self.ended, "the load has ended by itself"

    def take(self, line: str) -> None:
        """Take up a line of the program."""
        said = json.loads(line)
        match said.pop("event"):
            case "progress":
                self.answered = said
                self.reports += 1
            case "gap":
                self.gaps.append(said["seconds"])
            case "try failed":
                self.failed_tries.append(said["error"])
            case "call failed":
                self.failed_calls.append(said["error"])
            case "ledger":
                self.ledger = said
            case _:
                self.wrong.append(line)


@contextmanager
def flowing(stack: Stack) -> Iterator[Traffic]:
    """Let calls flow for as long as the block lasts; they flow when it begins."""
    traffic = Traffic(stack)
    with stack.program("load", *PROGRAM, "write") as process:
        reader = threading.Thread(target=_follow, args=(process, traffic), daemon=True)
        reader.start()
        traffic.wait_answered()
        yield traffic
        assert process.stdin is not None
        process.stdin.close()
        reader.join(timeout=END_S)
        assert not reader.is_alive(), "the load hangs"
    assert not traffic.wrong, traffic.wrong
    assert traffic.ledger is not None, "the load died without its ledger"


def check_ledger(traffic: Traffic) -> int:
    """Read all versions that were acknowledged, and return their number."""
    given = json.dumps(traffic.ledger)
    done = traffic.stack.exec("load", *PROGRAM, "check", given=given, timeout=CHECK_S)
    said = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = [line for line in said if line["event"] == "wrong"]
    assert not wrong, wrong[:10]
    assert said[-1]["event"] == "checked"
    return int(said[-1]["versions"])


def _follow(process: "subprocess.Popen[str]", traffic: Traffic) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        traffic.take(line)
    traffic.ended = True
