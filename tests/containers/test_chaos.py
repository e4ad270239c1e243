"""Random kills, pauses and cuts of networks under load: no acknowledged write is lost, and no value is ever wrong.

`CHAOS_S` is how many seconds it takes; `CHAOS_SEED` repeats a run that failed, as far as the machine allows.
"""

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from common.forms.audit.verify import verify
from tests.containers.disturbance import disturbed
from tests.containers.shared import SharedStacks
from tests.containers.stack import KEEPERS, Stack
from tests.containers.traffic import Traffic, check_ledger, flowing, with_load

CHAOS_S = float(os.environ.get("CHAOS_S", "45"))
SEED = int(os.environ.get("CHAOS_SEED", "20261128"))
LIFETIME_S = 60  # of SVIDs: they change meanwhile
GONE = 2  # keepers at a time, n − t
LONGEST_S = 4.0  # of one disturbance
STEPS_S = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)  # of the histogram

KEEPER_WAYS = ("pause", "kill", "crash", "cut")
NEXUS_WAYS = ("pause", "cut", "unreachable", *("crash",) * 7)

pytestmark = [pytest.mark.final, pytest.mark.timeout(CHAOS_S * 3 + 1200)]


@pytest.fixture(scope="module")
def stack(stacks: SharedStacks) -> Stack:
    """The stack under load, with SVIDs that change meanwhile."""
    return stacks.take("load", with_load(lifetime_s=LIFETIME_S))


def test_chaos(stack: Stack, tmp_path: Path) -> None:
    """While up to n − t keepers, nexus and provider fail at random, no write is lost, and none goes unaudited."""
    choose = random.Random(SEED)
    befell: Counter[str] = Counter()
    recoveries: list[float] = []
    with flowing(stack) as traffic:
        until = time.monotonic() + CHAOS_S
        while time.monotonic() < until:
            ways = _choose_ways(choose)
            befell.update(f"{service.partition('_')[0]} {way}" for service, way in ways.items())
            seen = len(traffic.gaps)
            with disturbed(stack, **ways):
                threading.Event().wait(choose.uniform(0, LONGEST_S))  # how long it lasts is chance, too
            traffic.wait_answered()
            if ways.get("nexus") == "crash":
                recoveries.append(max(traffic.gaps[seen:], default=0.0))
            stack.wait_whole()
    print(f"\nseed {SEED}: {dict(befell)}; answered: {traffic.answered}")
    print(f"tries that failed: {len(traffic.failed_tries)}, calls: {Counter(traffic.failed_calls)}")
    print(_draw(recoveries))
    checked = check_ledger(traffic)
    assert checked > CHAOS_S
    _check_audit(stack, traffic, tmp_path)


def _choose_ways(choose: random.Random) -> dict[str, str]:
    """Choose what happens at once: to some keepers, most times to the nexus, and now and then to the provider."""
    gone = choose.sample(KEEPERS, choose.randint(0, GONE))
    ways = {keeper.replace("-", "_"): choose.choice(KEEPER_WAYS) for keeper in gone}
    if choose.random() < 0.9 or not gone:
        ways["nexus"] = choose.choice(NEXUS_WAYS)
    if choose.random() < 0.15:
        ways["identity"] = choose.choice(("pause", "kill", "crash"))
    return ways


def _check_audit(stack: Stack, traffic: Traffic, folder: Path) -> None:
    """Verify the chain of the audit files, and that each acknowledged write has its entry in them."""
    stack.compose("stop", "nexus")
    stack.compose("cp", "nexus:/var/lib/shardhold/audit", str(folder))
    stack.start("nexus")
    report = verify(folder / "audit")
    assert not report.faults
    assert report.chains
    made = set(_list_changes(folder / "audit"))
    print(f"audit: {len(made)} changes, {len(report.torn_tails)} torn tails, {report.chains[-1].signed} checkpoints")
    assert traffic.ledger
    missing = {
        (path, version)
        for path, (acknowledged, _) in traffic.ledger.items()
        for version in range(1, acknowledged + 1)
        if (path, version) not in made
    }
    assert not missing, f"{len(missing)} acknowledged writes are not in the audit"


def _list_changes(directory: Path) -> Iterator[tuple[str, int]]:
    """Yield path and version of all changes that are in audit files."""
    for file in directory.glob("*.jsonl"):
        for line in file.read_bytes().splitlines():
            with suppress(msgspec.DecodeError):  # the end of a torn one, of which `verify` knows
                said = msgspec.json.decode(line)
                if said["kind"] == "change":
                    yield said["entry"]["path"], said["entry"].get("version", 0)


def _draw(seconds: Sequence[float]) -> str:
    """Draw a histogram."""
    rows = [f"the nexus was killed {len(seconds)} times; seconds from its last answer to the next:"]
    least = 0
    for most in STEPS_S:
        count = sum(least < one <= most for one in seconds)
        if count or least < max(seconds, default=0):
            rows.append(f"  {least:3} to {most:3}  {'█' * count} {count or ''}")
        least = most
    if seconds:
        ordered = sorted(seconds)
        rows.append(f"  median {ordered[len(ordered) // 2]}, longest {ordered[-1]}")
    return "\n".join(rows)
