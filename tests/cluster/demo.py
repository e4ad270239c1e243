"""Shows Shardhold's main job on real processes; `make demo`. Exit code 0 only if every step held."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding

from pilot.dev.directory import DevError, Plan
from pilot.dev.identities import OPERATOR_PATH, custodian_path
from pilot.dev.spawn import exec_program
from shardhold import DeniedError, Error
from shardhold.v1 import root_pb2
from tests.cluster.demo_load import Load
from tests.cluster.operations import Operations
from tests.kit.cluster import Cluster
from tests.kit.errors import ClusterError

APP, STRANGER = "/demo/app", "/demo/stranger"
PATH, PASSWORD = "demo/database", b"correct horse battery staple"
LOST = ("keeper-4", "keeper-5")
LIAR = "keeper-2"

Step = Callable[[Cluster], str]


def start(cluster: Cluster) -> str:
    """Started a nexus and five keepers, and made the first root key"""
    cluster.start()
    status = cluster.wait_filled()
    held(status["state"] == "ready" and status["generation"] == 1, "ready with generation 1")
    held((status["shard_threshold"], status["shard_count"]) == (3, 5), "threshold 3 of 5")
    return "the nexus has it in memory, the keepers one shard each; any three suffice"


def put_and_get(cluster: Cluster) -> str:
    """Put a secret as a workload, and got it back"""
    cluster.allow(APP, ["demo/**"], ["read", "write"])
    cluster.workload(APP).put(PATH, {"password": PASSWORD})
    held_secret(cluster)
    try:
        cluster.workload(STRANGER).get(PATH)
    except DeniedError:
        return f"over mTLS, as a policy allows {APP}; {STRANGER} was denied"
    raise ClusterError(f"{STRANGER} got {PATH} without a policy")


def kill_nexus(cluster: Cluster) -> str:
    """Killed the nexus with -9, and started it"""
    seconds = cluster.restart_nexus()
    held_secret(cluster)
    return f"ready {seconds:.1f} s after its start, without a human; the secret is served"


def kill_keepers(cluster: Cluster) -> str:
    """Killed two keepers with -9"""
    client = cluster.workload(APP)
    cluster.kill(*LOST)
    for number in range(100):
        client.put("demo/counter", {"value": b"%d" % number})
        held(client.get("demo/counter").fields == {"value": b"%d" % number}, "each get returns what was put last")
    return f"nothing is felt: 100 puts and gets went well without {' and '.join(LOST)}"


def kill_nexus_with_three(cluster: Cluster) -> str:
    """Killed the nexus again, while two keepers are gone"""
    seconds = cluster.restart_nexus()
    held_secret(cluster)
    return f"ready {seconds:.1f} s after its start: three shards of five were enough"


def refill(cluster: Cluster) -> str:
    """Started the two keepers again, which forgot their shards"""
    cluster.run(*LOST)
    started = time.monotonic()
    cluster.wait_filled(*LOST)
    return f"the nexus gave them their shards {time.monotonic() - started:.1f} s after they answered"


def rotate(cluster: Cluster) -> str:
    """Rotated the root key under load, and killed the nexus in the middle"""
    away, operations = LOST[1], Operations(cluster)
    cluster.kill(away)  # without it, the new key waits to become current
    with Load(cluster.workload(APP), "demo/load") as load:
        cluster.pilot("root", "rotate", "--reason", "the demo says so", "--without-backup", "it is a demo")
        cluster.wait("both keys are held", lambda: operations.look().operation.step == root_pb2.STEP_DISTRIBUTED)
        seconds = cluster.restart_nexus()
        cluster.run(away)
        held(operations.wait_ended().outcome == root_pb2.OUTCOME_SETTLED, "the rotation was finished")
        cluster.wait("the older KEK is gone", lambda: len(operations.look().keks) == 1)
    puts = load.check()
    held_secret(cluster)
    states = [one["state"] for one in json.loads(cluster.pilot("root", "history", "-o", "json").stdout)]
    held(states == ["retired", "active"], f"generation 1 is retired and 2 is active, not {states}")
    return (
        f"killed while keepers held shards of both keys; ready {seconds:.1f} s after its start, and the rotation was "
        f"finished: generation 2 serves, no row is under an older KEK; of {puts} puts none was lost or made twice"
    )


def outvote_liar(cluster: Cluster) -> str:
    """Put a liar in the place of a keeper, and killed the nexus again"""
    cluster.replace_keeper(LIAR, "flip")
    cluster.wait_filled(LIAR)
    seconds = cluster.restart_nexus()
    held_secret(cluster)
    status = cluster.wait_status(f"{LIAR} is named", lambda status: bool(fault_of(status, LIAR)))
    others = [keeper["name"] for keeper in status["keepers"] if keeper["fault"] and keeper["name"] != LIAR]
    held(not others, f"nobody but {LIAR} is named, not {others}")
    return f"ready {seconds:.1f} s after its start, and the liar is named: {LIAR}: {fault_of(status, LIAR)}"


def lose_everything(cluster: Cluster) -> str:
    """Killed the nexus and all keepers with -9: no process knows the key"""
    cluster.kill("nexus", *cluster.keepers)
    cluster.run("nexus", *cluster.keepers)
    held(cluster.wait_settled() == "recovering", "the nexus does not come back by itself")
    had = cluster.status()["blocked_by"][0].split(",")[0]
    seconds = unseal(cluster, 2, 5, 4)
    held_secret(cluster)
    return f"the nexus had {had}; ready after {seconds:.1f} s of pilot unseal by three custodians with their shares"


def seal(cluster: Cluster) -> str:
    """Sealed it, and killed the nexus and all keepers again"""
    cluster.wait_filled()
    cluster.pilot("seal", "--reason", "the demo says so", "--yes", path=OPERATOR_PATH)
    held([cluster.count_sets(name) for name in cluster.keepers] == [0] * 5, "keepers hold nothing")
    cluster.rerun("nexus", *cluster.keepers)
    held(cluster.wait_settled() == "sealed", "a restart stays sealed")
    seconds = unseal(cluster, 1, 3, 5)
    held_secret(cluster)
    return f"no keeper held a shard, and the restart stayed sealed; ready after {seconds:.1f} s of pilot unseal"


def put_older_store_back(cluster: Cluster) -> str:
    """Put an older copy of the store back under the nexus"""
    cluster.wait_filled()
    cluster.kill("nexus")
    copy = cluster.store.copy("of-the-demo")
    cluster.start_nexus()
    cluster.workload(APP).put("demo/later", {"value": b"not in the copy"})
    cluster.wait_marked()
    cluster.kill("nexus")
    cluster.store.put_back(copy)
    cluster.run("nexus")
    cluster.wait_status("all keepers told", lambda status: len((status["newer_mark"] or {}).get("keepers", ())) == 5)
    held(cluster.wait_settled() == "recovering", "it serves nothing")
    status = cluster.status()
    position = "--timeline", str(status["timeline"]), "--revision", str(status["revision"])
    cluster.pilot("accept-older-store", *position, "--yes")
    held_secret(cluster)
    held(cluster.status()["timeline"] == status["timeline"] + 1, "a new timeline began")
    was, remembered = status["revision"], status["newer_mark"]["revision"]
    return (
        f"refused: it is at revision {was}, and five keepers remember {remembered}; ready once a superuser gave that "
        f"up with pilot accept-older-store"
    )


STEPS: tuple[Step, ...] = (
    start,
    put_and_get,
    kill_nexus,
    kill_keepers,
    kill_nexus_with_three,
    refill,
    rotate,
    outvote_liar,
    lose_everything,
    seal,
    put_older_store_back,
)


def unseal(cluster: Cluster, *numbers: int) -> float:
    """Have custodians submit their cards, each as a person does with pilot; return the seconds until it was ready."""
    began = time.monotonic()
    for number in numbers:
        card = sorted(cluster.directory.recovery_shares.iterdir())[number - 1]
        cluster.pilot("unseal", f"@{card}", path=custodian_path(number))
    cluster.wait_ready()
    return time.monotonic() - began


def held(truth: bool, claim: str) -> None:
    """Raise `ClusterError` unless *claim* is true."""
    if not truth:
        raise ClusterError(f"does not hold: {claim}")


def held_secret(cluster: Cluster) -> None:
    """Raise `ClusterError` unless the workload gets exactly what it put."""
    held(cluster.workload(APP).get(PATH).fields == {"password": PASSWORD}, "the workload gets what it put")


def fault_of(status: object, name: str) -> str:
    """Return what the nexus says is wrong with a keeper; empty when nothing is."""
    assert isinstance(status, dict)
    return next((str(keeper["fault"] or "") for keeper in status["keepers"] if keeper["name"] == name), "")


def main() -> int:
    """Run all steps on a cluster of their own; return the exit code."""
    console = Console(highlight=False)
    console.rule("[bold]Shardhold: it gets its key back")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="shardhold-demo-") as folder:
        cluster = Cluster(Path(folder) / "dev", Plan(keepers=5, threshold=3), spawn=exec_program)
        try:
            for number, step in enumerate(STEPS, start=1):
                if not run(console, cluster, number, step):
                    return 1
        finally:
            cluster.close()
    console.rule(f"[green]every step held[/], in {time.monotonic() - began:.0f} s")
    return 0


def run(console: Console, cluster: Cluster, number: int, step: Step) -> bool:
    """Run one step and say what it proved, or show the logs."""
    doing = (step.__doc__ or step.__name__).strip()
    try:
        with console.status(doing):
            proof = step(cluster)
    except (ClusterError, DevError, Error) as exc:
        console.print(f"[red]✗ {number}[/] {doing}")
        console.print(escape("\n".join((str(exc), *getattr(exc, "hints", ()), "", cluster.logs()))), soft_wrap=True)
        return False
    console.print(f"[green]✓[/] [bold]{number}[/] {doing}")
    console.print(Padding(f"[dim]{escape(proof)}[/]", (0, 0, 0, 4)))
    return True


if __name__ == "__main__":
    sys.exit(main())
