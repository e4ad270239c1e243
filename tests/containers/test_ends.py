"""Whatever ends, and however: the cluster comes back by itself where it can, and says for whom it waits where not.

One stack walks through all of it.
"""

import subprocess
from pathlib import Path

import pytest

from tests.containers.shared import SharedStacks
from tests.containers.stack import KEEPERS, ROOT, SERVERS, Stack, docker, rebuild_images
from tests.containers.transcript import Step, read_steps
from tests.containers.without_shells import PATH, VALUE, take

DOCUMENT = (ROOT / "docs" / "deploy-containers.md").read_text()
TAR = "shardhold-data.tar"


@pytest.fixture(scope="module")
def shared(stacks: SharedStacks) -> Stack:
    """The stack without shells; it has a secret."""
    return take(stacks)


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """The stack, whole before each test."""
    shared.restore()
    return shared


def read(stack: Stack) -> str:
    """Get the secret as the workload does."""
    return stack.exec("app", "pilot", "--timeout", "60", "secret", "get", PATH, "--field", "password").stdout


def test_a_nexus_that_crashes_comes_back_by_itself(stack: Stack) -> None:
    """After SIGKILL the engine starts the nexus, keepers give it its key, and the secret is served."""
    before = stack.inspect("nexus")
    stack.crash("nexus")
    took = stack.wait("it was started", lambda: stack.inspect("nexus")["RestartCount"] > before["RestartCount"])
    print(f"\nready {took + stack.wait_ready():.1f} s after the kill")
    assert stack.container("nexus") == before["Id"]
    assert read(stack) == VALUE


def test_a_keeper_that_crashes_is_filled_again(stack: Stack) -> None:
    """A keeper that crashes comes back empty and gets its shard, and reads go on meanwhile."""
    stack.crash("keeper-2", "keeper-4")
    assert read(stack) == VALUE
    stack.wait("they were started", lambda: stack.is_running("keeper-2", "keeper-4"))
    stack.wait_filled()


def test_restart_drains_and_comes_back(stack: Stack) -> None:
    """`docker compose restart nexus` ends the nexus by SIGTERM, in time and wiped, and no human is needed after it."""
    stack.compose("restart", "nexus")
    stack.wait_ready()
    assert '"event": "stopped", "exit_code": 0' in stack.logs("nexus")
    assert read(stack) == VALUE


def test_kill_stays_down_until_up(stack: Stack) -> None:
    """The engine leaves a nexus down after `docker compose kill`; after `up` it is ready by itself."""
    stack.compose("kill", "nexus")
    assert not stack.is_running("nexus")
    stack.up()
    stack.wait_ready()
    assert read(stack) == VALUE


def test_paused_keepers_hold_nobody_up(stack: Stack) -> None:
    """While two keepers of five do not answer, reads go on, and a nexus that crashes comes back."""
    stack.pause("keeper-1", "keeper-3")
    try:
        assert read(stack) == VALUE
        stack.crash("nexus")
        stack.wait_ready()
        assert read(stack) == VALUE
    finally:
        stack.unpause("keeper-1", "keeper-3")


def test_another_provider_is_another_authority(stack: Stack) -> None:
    """After the provider crashed with its key, all trust the next one's, and old and new connections serve."""
    stack.crash("identity")
    stack.wait("it was started", lambda: stack.is_running("identity"))
    stack.wait("the workload is served", lambda: stack.exec("app", "pilot", "whoami", check=False).returncode == 0)
    stack.wait(
        "the nexus takes the new authority",
        lambda: stack.exec("app", "pilot", "secret", "get", PATH, check=False).returncode == 0,
    )
    stack.wait_filled()
    stack.crash("nexus")
    stack.wait_whole()
    assert read(stack) == VALUE


def test_a_lost_volume_is_put_back_as_printed(stack: Stack, tmp_path: Path) -> None:
    """A backup is put back by the commands of the document alone. Without the volume no new cluster is made; what the
    copy lacks is noticed, and is lost when an operator accepts the copy."""
    for step in read_steps(DOCUMENT, "Backup"):
        run_step(step, stack, tmp_path)
    copied = stack.wait_whole()
    stack.pilot("secret", "put", PATH, "password=-", given="newer")
    refill(stack, "keeper-1")  # with its shard it is given a mark of where the store stands now
    stack.compose("rm", "--stop", "--force", "nexus")
    docker("volume", "rm", f"{stack.project}_data")
    refused = stack.compose("up", "--detach", "--wait", check=False)
    assert refused.returncode != 0
    assert f"of the keepers serve cluster {copied['cluster_id']}" in stack.logs("init")
    for step in read_steps(DOCUMENT, "Restore"):
        run_step(step, stack, tmp_path)
    status = stack.wait_status("a mark blocks it", lambda status: "rollback mark" in " ".join(status["blocked_by"]))
    position = ("--timeline", str(status["timeline"]), "--revision", str(status["revision"]))
    assert (status["cluster_id"], status["revision"]) == (copied["cluster_id"], copied["revision"])
    stack.pilot("accept-older-store", *position, "--yes")
    stack.wait_ready()
    assert read(stack) == VALUE


def refill(stack: Stack, keeper: str) -> None:
    """Have the nexus give a keeper its shard once more."""
    stack.kill(keeper)
    stack.wait_status(
        f"{keeper} is missed",
        lambda status: any(one["name"] == keeper and not one["holds_current_set"] for one in status["keepers"]),
    )
    stack.start(keeper)
    stack.wait_filled(keeper)


def run_step(step: Step, stack: Stack, folder: Path) -> None:
    """Run a step of the document, for this project and with its file in *folder*."""
    command = step.command.replace("shardhold_data", f"{stack.project}_data").replace(TAR, str(folder / TAR))
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=stack.environ(), capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        logs = stack.compose("logs", "--no-color", "--tail", "8", check=False).stdout
        pytest.fail(f"$ {command}\n{done.stdout}{done.stderr}\n{logs}")


def test_down_and_up_waits_for_recovery_shares(stack: Stack, tmp_path: Path) -> None:
    """After all went down at once, `up` succeeds and the nexus says what it waits for. Three custodians bring it back
    by the commands of the document, and nothing that was written is lost."""
    stack.down()
    stack.up()
    status = stack.wait_state("recovering")
    assert "0 of 3 shards" in " ".join(status["blocked_by"])
    assert "initialised before" in stack.logs("init")
    assert "policies are as they were" in stack.logs("policy")
    stack.wait("the example says why", lambda: "not read: " in stack.logs("app"))
    printed = [
        step
        for step in read_steps(DOCUMENT, "What an operator does, and what happens")
        if " pilot unseal " in step.command
    ]
    assert len(printed) == 3
    for step in printed:
        run_step(step, stack, tmp_path)
    stack.wait_whole()
    assert read(stack) == VALUE
    stack.wait("the example goes on", lambda: f"got {PATH} version 1" in stack.logs("app"))


def test_all_at_once_in_any_order(stack: Stack) -> None:
    """After all were killed and started the wrong way round, as when a machine restarts, custodians bring it back."""
    order = ("app", *reversed(KEEPERS), "nexus", "identity")
    stack.kill(*order)
    stack.start(*order)
    stack.wait("all of them run", lambda: stack.is_running(*SERVERS, "identity"))
    stack.wait_state("recovering")
    stack.unseal((5, 2, 4))
    stack.wait_ready()
    assert read(stack) == VALUE


def test_the_documented_upgrade_and_a_plain_up_after_it(stack: Stack, tmp_path: Path) -> None:
    """Containers are replaced one by one by the commands of the document, and a plain `up` then lets them be."""
    replace, ask, finish = (step for step in read_steps(DOCUMENT, "Upgrade") if step.command != "docker compose build")
    stack.tag = rebuild_images(stack.tag)
    for service in (*KEEPERS, "nexus"):
        run_step(Step(replace.command.replace("keeper-1", service)), stack, tmp_path)
        stack.wait_whole()
    assert "pilot status" in ask.command
    upgraded = stack.inspect_all(*SERVERS)
    assert all(found["Config"]["Image"].endswith(stack.tag) for found in upgraded.values())
    run_step(finish, stack, tmp_path)
    for service, found in stack.inspect_all(*SERVERS).items():
        assert found["Id"] == upgraded[service]["Id"], f"{service} was made again"
        assert found["State"]["StartedAt"] == upgraded[service]["State"]["StartedAt"], f"{service} was started again"
    assert stack.inspect("identity")["Config"]["Image"].endswith(stack.tag)
    stack.wait_whole()
    assert read(stack) == VALUE
