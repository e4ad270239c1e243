"""The steps in the life of a nexus that sweeps take, the faults that come to them, and how many are tried.

`make test-cluster` kills at the first, the last and one between of each step, and lets one fail in each way. SWEEP=all
takes every one, for an hour and more.
"""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest
from grpc import RpcError, StatusCode

from pilot.errors import PilotError
from shardhold.v1 import root_pb2 as pb
from tests.cluster.operations import Operations
from tests.cluster.strace import Injection
from tests.cluster.sweep import Cell, Step, Sweep
from tests.kit.errors import ClusterError
from tests.kit.patience import patience
from tests.kit.refusal import read_outcome
from tests.kit.seed import make_random

Calls = Callable[[str], list[tuple[str, str, int]]]  # of a step: group of files, call, and how many one thread makes

SWEEPS = [
    pytest.mark.cluster,
    pytest.mark.destructive,
    pytest.mark.final,
    pytest.mark.needs("memory", "strace"),  # strace of a process that is not dumpable
    pytest.mark.timeout(0 if os.environ.get("SWEEP") == "all" else 600),
]


def have_ready(sweep: Sweep) -> None:
    if not sweep.is_alive:
        sweep.start()
    sweep.bring_back()


def have_waiting_entries(sweep: Sweep) -> None:
    """Leave an entry in the store that the exporter will discard within a second."""
    have_ready(sweep)
    for _ in range(2):
        sweep.cluster.wait("the store is drained", sweep.is_drained)
        assert not sweep.ledger.put()


def have_killed(sweep: Sweep) -> None:
    """Leave what a kill may leave: entries in the store, and half a line in the audit."""
    have_waiting_entries(sweep)
    sweep.cluster.kill("nexus")
    last = max(sweep.cluster.directory.audit.glob("nexus-1.*.jsonl"))
    with last.open("ab") as segment:
        segment.write(b'{"kind":"entry","seq":')


def have_sealed(sweep: Sweep) -> None:
    have_ready(sweep)
    assert not act_seal(sweep)


def have_nothing(sweep: Sweep) -> None:
    """Leave no store, no audit and no shard, and nothing that runs but the keepers."""
    cluster = sweep.cluster
    for name in cluster.plan.servers:
        cluster.dev.kill(name)
    for folder in (cluster.directory.data, cluster.directory.audit):
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
    cluster.run(*cluster.keepers)
    sweep.forget()


def have_uninitialised(sweep: Sweep) -> None:
    have_nothing(sweep)
    sweep.start()


def act_put(sweep: Sweep) -> str:
    """Make two versions, read one, and say whether any was refused."""
    return sweep.ledger.put() or sweep.ledger.read() or sweep.ledger.put()


def act_seal(sweep: Sweep) -> str:
    outcome = read_outcome(sweep.cluster.superuser.seal)
    return outcome.reason or outcome.code.name.replace("OK", "")


def act_unseal(sweep: Sweep) -> str:
    outcome = read_outcome(sweep.cluster.unseal)
    return outcome.reason or outcome.code.name.replace("OK", "")


def act_rotate(sweep: Sweep) -> str:
    """Replace the root key until nothing of the older one is left; return why that is not said to go on."""
    operations = Operations(sweep.cluster)
    outcome = read_outcome(lambda: operations.begin(pb.DEPTH_ROTATE))
    if outcome.code is not StatusCode.OK:
        return outcome.reason or outcome.code.name
    found = pb.GetOperationResponse()

    def is_over() -> bool:
        nonlocal found
        if not sweep.is_alive or sweep.says_audit_fails():
            return True
        with contextlib.suppress(RpcError):  # it may die now, and nothing waits for it then
            found = sweep.cluster.superuser.root.GetOperation(pb.GetOperationRequest(), timeout=patience(2))
        return not found.HasField("operation") and len(found.keks) == 1

    try:
        sweep.cluster.wait("nothing of the older key is left, or the nexus is not well", is_over, timeout=15)
    except ClusterError:
        return found.operation.waits_for or "rows are under an older KEK"
    return ""


def act_start(sweep: Sweep) -> str:
    """Start it, and wait until it has recovered, or says why it is not well."""

    def is_told() -> bool:
        return not sweep.is_alive or sweep.cluster.dev.is_ready() or sweep.says_audit_fails()

    refused = sweep.start()
    sweep.cluster.wait("it is ready, or says why not", is_told)
    return refused


def act_first_start(sweep: Sweep) -> str:
    return sweep.start()


def act_init(sweep: Sweep) -> str:
    """Initialise; a nexus that dies is started, since pilot asks it then what came of the init."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(sweep.cluster.dev.init)
        sweep.cluster.wait("init is over, or the nexus", lambda: done.done() or not sweep.is_alive, timeout=90)
        if not sweep.is_alive:
            sweep.start()
        try:
            done.result()
        except PilotError as exc:
            return str(exc)
    return ""


def act_end(sweep: Sweep) -> str:
    """Have it end by itself."""
    os.kill(sweep.pid, signal.SIGTERM)
    sweep.cluster.wait("the nexus ends", lambda: not sweep.is_alive)
    return ""


READY = frozenset({"ready"})
BORN = frozenset({"ready", "recovering"})
UNBORN = frozenset({"uninitialised", "initialising"})
STEPS = {
    "first start": Step(have_nothing, act_first_start, UNBORN, UNBORN, traces_start=True),
    "init": Step(have_uninitialised, act_init, UNBORN | BORN, BORN),
    "put": Step(have_ready, act_put, READY, READY),
    "rotate": Step(have_ready, act_rotate, READY, READY),
    "export": Step(have_waiting_entries, lambda sweep: "", READY, READY),
    # When the seal cannot be committed, keepers are emptied all the same.
    "seal": Step(have_ready, act_seal, BORN | {"sealed"}, frozenset({"sealed"})),
    "unseal": Step(have_sealed, act_unseal, BORN | {"sealed"}, BORN),
    "recovery": Step(have_killed, act_start, READY, READY, traces_start=True),
    "end": Step(have_waiting_entries, act_end, READY, READY),
}
FILLING, SHUTTING = [*STEPS][:5], [*STEPS][5:]  # one test file each, so that both run at once
FAULTS = {
    "kill": ("signal=KILL", ""),
    "EIO once": ("error=EIO", ""),
    "EIO for good": ("error=EIO", "+"),
    "disk full once": ("error=ENOSPC", ""),
    "disk full for good": ("error=ENOSPC", "+"),
}


def sweep_over(sweep: Sweep, calls: Calls, fault: str, name: str) -> None:
    """Let a fault come to calls of a step, to every one or to some, and check the promise each time."""
    if os.environ.get("SWEEP") == "all":
        for group, call, _ in calls(name):
            for k in count(1):
                if not run(sweep, name, Cell(group, inject(fault, call, k))):
                    break
    else:
        cells = [Cell(group, inject(fault, call, k + 1)) for group, call, most in calls(name) for k in range(most)]
        picked = pick(cells, f"{name} {fault}", ends=fault == "kill")
        fired = [run(sweep, name, cell) for cell in picked]
        assert any(fired) or len(picked) == 1  # how many calls there are differs a little each time
    sweep.ledger.check(whole=True)


def inject(fault: str, call: str, k: int) -> Injection:
    effect, lasts = FAULTS[fault]
    return Injection(call, effect, f"{k}{lasts}")


def pick(cells: list[Cell], name: str, *, ends: bool) -> list[Cell]:
    """Choose one, and with *ends* the first and the last as well."""
    chosen = {make_random(name).randrange(len(cells))} | ({0, len(cells) - 1} if ends else set())
    return [cells[index] for index in sorted(chosen)]


def run(sweep: Sweep, name: str, cell: Cell) -> bool:
    began = time.monotonic()
    try:
        fired = sweep.run(STEPS[name], cell)
        print(f"{name}: {cell}: {'fired' if fired else 'passed'} {time.monotonic() - began:.1f} s", flush=True)
        return fired
    except Exception as exc:
        print(f"FAILED {name}: {cell}: {exc}"[:700], flush=True)
        exc.add_note(f"{name}: {cell}")
        exc.add_note(sweep.cluster.logs())
        raise
