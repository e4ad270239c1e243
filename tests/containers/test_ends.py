"""Whatever ends, and however: the cluster comes back by itself where it can, and says for whom it waits where not.

One stack walks through all of it; each test leaves it ready.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers.stack import KEEPERS, ROOT, SERVERS, Stack, docker, running
from tests.containers.transcript import Step, read_steps

PATH = "team/app/db"
VALUE = "correct horse"
DOCUMENT = (ROOT / "docs" / "deploy-containers.md").read_text()
TAR = "shardhold-data.tar"


@pytest.fixture(scope="module")
def whole(images: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that is ready and has a secret."""
    with running(tmp_path_factory.mktemp("stack"), images) as stack:
        stack.pilot("secret", "put", PATH, "password=-", given=VALUE)
        yield stack


@pytest.fixture
def stack(whole: Stack) -> Stack:
    """The same, with the shards where they belong."""
    whole.wait_ready()
    whole.wait_filled()
    return whole


def read(stack: Stack) -> str:
    """Get the secret as the workload does."""
    return stack.exec("app", "pilot", "--timeout", "60", "secret", "get", PATH, "--field", "password").stdout


def test_a_nexus_that_crashes_comes_back_by_itself(stack: Stack) -> None:
    """Killed with SIGKILL: the engine starts it, the keepers give it its key, and the secret is served."""
    before = stack.inspect("nexus")
    stack.crash("nexus")
    took = stack.wait("it was started", lambda: stack.inspect("nexus")["RestartCount"] > before["RestartCount"])
    print(f"\nready {took + stack.wait_ready():.1f} s after the kill")
    assert stack.container("nexus") == before["Id"]
    assert read(stack) == VALUE


def test_a_keeper_that_crashes_is_filled_again(stack: Stack) -> None:
    """It comes back empty, and gets its shard; nobody else notices."""
    stack.crash("keeper-2", "keeper-4")
    assert read(stack) == VALUE
    stack.wait("they were started", lambda: all(stack.is_running(keeper) for keeper in ("keeper-2", "keeper-4")))
    stack.wait_filled()


def test_restart_drains_and_comes_back(stack: Stack) -> None:
    """`docker compose restart nexus` ends it by SIGTERM, in time and wiped; it is ready again without a human."""
    stack.compose("restart", "nexus")
    stack.wait_ready()
    assert '"event": "stopped", "exit_code": 0' in stack.logs("nexus")
    assert read(stack) == VALUE


def test_kill_stays_down_until_up(stack: Stack) -> None:
    """`docker compose kill` is a decision, and not undone by the engine; `up` starts it, and it is ready by itself."""
    stack.kill("nexus")
    assert not stack.is_running("nexus")
    stack.up()
    stack.wait_ready()
    assert read(stack) == VALUE


def test_paused_keepers_hold_nobody_up(stack: Stack) -> None:
    """Two of five do not answer: reads go on, and a nexus that crashes meanwhile comes back."""
    stack.pause("keeper-1", "keeper-3")
    try:
        assert read(stack) == VALUE
        stack.crash("nexus")
        stack.wait_ready()
        assert read(stack) == VALUE
    finally:
        stack.unpause("keeper-1", "keeper-3")


def test_another_provider_is_another_authority(stack: Stack) -> None:
    """The provider's key dies with it: everybody takes up the next one, and old connections and new ones both serve."""
    stack.crash("identity")
    stack.wait("it was started", lambda: stack.is_running("identity"))
    stack.wait("the workload is served", lambda: stack.exec("app", "pilot", "whoami", check=False).returncode == 0)
    stack.wait(
        "the nexus takes the new authority",
        lambda: stack.exec("app", "pilot", "secret", "get", PATH, check=False).returncode == 0,
    )
    stack.wait_filled()
    stack.crash("nexus")
    stack.wait_ready()
    stack.wait_filled()
    assert read(stack) == VALUE


def test_a_lost_volume_is_put_back_as_printed(stack: Stack, tmp_path: Path) -> None:
    """Backup and restore by the commands of the document alone. In between the volume is gone: no new cluster is made,
    and what the copy lacks is noticed, and lost when it is accepted."""
    for step in read_steps(DOCUMENT, "Backup"):
        run_step(step, stack, tmp_path)
    stack.wait_ready()
    copied = stack.wait_filled()
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
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"


def test_down_and_up_waits_for_recovery_shares(stack: Stack) -> None:
    """Everything down at once forgets the key. `up` is content, and the nexus says for whom it waits; three custodians
    bring it back with their shares, and nothing that was written is lost."""
    stack.down()
    stack.up()
    status = stack.wait_state("recovering")
    assert "0 of 3 shards" in " ".join(status["blocked_by"])
    assert "initialised before" in stack.logs("init")
    assert "policies are as they were" in stack.logs("policy")
    stack.wait("the example says why", lambda: f"no {PATH}: " in stack.logs("app"))
    stack.unseal()
    stack.wait_ready()
    stack.wait_filled()
    assert read(stack) == VALUE
    stack.wait("the example goes on", lambda: f"got {PATH} version 1" in stack.logs("app"))


def test_all_at_once_in_any_order(stack: Stack) -> None:
    """As when the machine goes down: all killed, started the wrong way round; custodians bring it back."""
    order = ("app", *reversed(KEEPERS), "nexus", "identity")
    stack.kill(*order)
    for service in order:
        stack.start(service)
    stack.wait("all of them run", lambda: all(stack.is_running(service) for service in (*SERVERS, "identity")))
    stack.wait_state("recovering")
    stack.unseal((5, 2, 4))
    stack.wait_ready()
    assert read(stack) == VALUE
