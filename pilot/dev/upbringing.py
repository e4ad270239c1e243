"""Bringing a development cluster up: what starts it, what it still lacks, and what to do about that."""

import shlex
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console
from rich.markup import escape

from pilot.dev.cluster import IDENTITY, RECOVERY, RECOVERY_THRESHOLD, DevCluster
from pilot.dev.directory import DevError
from pilot.dev.identities import SUPERUSER_PATH, custodian_path

DEFAULT_DIRECTORY: Final = Path("shardhold-dev")
RECOVERY_TIMEOUT_S: Final = 20.0  # a recovery takes a second
UNAIDED_S: Final = 2.0  # if it takes longer, find out why
FORGOTTEN: Final = "the keepers were all down at once and forgot their shards"
_UNBORN: Final = ("uninitialised", "initialising")

console = Console(highlight=False)


class ByHand(NamedTuple):
    """What somebody wants to do themselves."""

    init: bool
    unseal: bool


def bring_up(cluster: DevCluster, before: set[str], by_hand: ByHand) -> bool:
    """Start what does not run, and initialise or unseal it unless that is done *by_hand*; return whether it is ready.

    *before* are the processes that ran already.
    """
    plan = cluster.state.plan
    with console.status(f"starting an identity provider, {plan.keepers} keepers and a nexus"):
        cluster.start()
    say(f"an identity provider, {plan.keepers} keepers and a nexus run, logs in {cluster.directory.logs}")
    if cluster.is_ready():
        return True
    status = cluster.load_status()
    if status["state"] in _UNBORN:
        return _init(cluster, by_hand)
    # Keepers that have just been started are empty: with fewer than a threshold of others, waiting is pointless.
    if len(before - {"nexus", IDENTITY}) >= plan.threshold and not _have_forgotten(status):
        with console.status("recovering"):
            if comes_back(cluster):
                return True
        status = cluster.load_status()
    return _unseal(cluster, status, by_hand)


def _init(cluster: DevCluster, by_hand: ByHand) -> bool:
    plan, directory = cluster.state.plan, cluster.directory
    with console.status("initialising"):
        aside = directory.set_shares_aside() if by_hand.init else cluster.init()
    if aside is not None:
        say(f"the recovery shares of an earlier cluster are kept in {aside}")
    if by_hand.init:
        return False
    say(
        f"initialised: any {plan.threshold} of {plan.keepers} keepers bring the nexus back; "
        f"recovery shares in {directory.recovery_shares}"
    )
    if cluster.wait_ready(timeout=RECOVERY_TIMEOUT_S) is None:
        raise DevError("the nexus is initialised and not ready", hint=cluster.log_tail("nexus"))
    return True


def _unseal(cluster: DevCluster, status: dict[str, Any], by_hand: ByHand) -> bool:
    """Bring back a cluster whose keepers have lost their shards; one that somebody sealed stays sealed."""
    if cluster.wait_ready(timeout=1) is not None:
        return True
    if by_hand.unseal or status["state"] == "sealed" or status["newer_mark"]:
        return False
    needed = status["recovery_threshold"] or RECOVERY_THRESHOLD
    try:
        with console.status("unsealing"):
            cluster.unseal(needed)
    except DevError as exc:
        say(f"[yellow]not unsealed[/]: {escape(': '.join(filter(None, (str(exc), *exc.hints))))}")
        return False
    if not comes_back(cluster):
        return False
    say(
        f"unsealed: {FORGOTTEN}, and {needed} recovery shares in {cluster.directory.recovery_shares} "
        "brought the root key back"
    )
    return True


def comes_back(cluster: DevCluster) -> bool:
    """Wait until the nexus is ready; return False if it is not ready in time, or at once if only people can help."""
    if cluster.wait_ready(timeout=UNAIDED_S) is not None:
        return True
    status = cluster.load_status()
    if status["state"] == "sealed" or _is_to_be_accepted(status):
        return False
    return cluster.wait_ready(timeout=RECOVERY_TIMEOUT_S) is not None


def _have_forgotten(status: dict[str, Any]) -> bool:
    """Say whether too many keepers have lost their shards: all answer, and there are not enough that hold one."""
    return all(keeper["reachable"] for keeper in status["keepers"]) and bool(status["keepers_short"])


def _is_to_be_accepted(status: dict[str, Any]) -> bool:
    return bool(status["newer_mark"] or status["restored"])


def is_initialised(cluster: DevCluster) -> bool:
    return cluster.load_status()["state"] not in _UNBORN


def describe_blocks(cluster: DevCluster) -> str:
    return "; ".join(cluster.load_status()["blocked_by"]) or cluster.log_tail("nexus")


def show_way_on(cluster: DevCluster, directory: Path, *, ready: bool) -> None:
    option = "" if directory == DEFAULT_DIRECTORY else f" --dir {shlex.quote(str(directory))}"
    if ready:
        say(f'next:  eval "$(pilot dev env{option})" && pilot status')
        return
    status = cluster.load_status()
    if status["state"] in _UNBORN:
        _show_init(cluster, option)
    elif _is_to_be_accepted(status):
        why = "is older than its keepers remember" if status["newer_mark"] else "was restored from a backup"
        say(f"[yellow]not ready[/]: the store {why}")
        say(f"look and decide:  pilot dev exec{option} --as {SUPERUSER_PATH} -- pilot status")
    else:
        _show_unseal(cluster, status, option)


def _show_init(cluster: DevCluster, option: str) -> None:
    shares = escape(shlex.quote(str(cluster.directory.recovery_shares)))
    init = f"pilot init --keeper-threshold {cluster.state.plan.threshold} --recovery {RECOVERY}"
    say("[yellow]not initialised[/]: do it by hand, as superuser")
    say(f'  eval "$(pilot dev env{option})"')
    say(f"  {init}")
    say(f"or, so that 'pilot dev up' finds the shares after a reboot:  {init} --shares-dir {shares}")


def _show_unseal(cluster: DevCluster, status: dict[str, Any], option: str) -> None:
    needed = status["recovery_threshold"] or RECOVERY_THRESHOLD
    why = "sealed" if status["state"] == "sealed" else FORGOTTEN
    say(f"[yellow]not ready[/]: {why}. {needed} custodians bring it back:")
    for number in range(1, needed + 1):
        card = escape(shlex.quote(f"@{cluster.directory.recovery_share(number)}"))
        say(f"  pilot dev exec{option} --as {custodian_path(number)} -- pilot unseal {card}")
    say(f'or, once for each share, as superuser:  eval "$(pilot dev env{option})" && pilot unseal')


def say(text: str) -> None:
    console.print(text, soft_wrap=True)
