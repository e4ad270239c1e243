"""`pilot init`: create a cluster, with its recovery key in the hands of custodians."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilot.errors import UsageError
from pilot.options import Settings, with_globals
from pilot.terminal.output import Output, group_hex, print_facts, print_json, show_name
from pilot.terminal.report import print_note
from pilot.terminal.signals import signals_as_interrupt

if TYPE_CHECKING:
    from common.keys.recovery_key import ShareHash
    from pilot.connection import Connection
    from pilot.custody.ceremony import Begun, Initialised, InitPlan, State

app = typer.Typer(add_completion=False)

DEFAULT_RECOVERY = "3/5"
_LOOK_S = 0.5  # between two looks for an identity
_CONFIRM_S = 30.0  # a confirmation waits for a quorum of keepers
_RECOVERY = re.compile(r"([0-9]{1,2})/([0-9]{1,2})")


@app.command()
@with_globals
def init(
    settings: Settings,
    keeper_threshold: Annotated[
        int, typer.Option(min=0, max=255, metavar="T", help="Keepers that a recovery needs; 0: more than half of them.")
    ] = 0,
    recovery: Annotated[
        str, typer.Option(metavar="K/N", help="Recovery shares needed, and made: 1/1, or 2 to 16 of 2 to 16.")
    ] = DEFAULT_RECOVERY,
    shares_dir: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="For automation: write one file for each custodian into this new directory."),
    ] = None,
    if_needed: Annotated[
        bool,
        typer.Option(
            "--if-needed",
            help="For automation: wait for identity and nexus, leave an initialised cluster alone and exit with 0.",
        ),
    ] = False,
) -> None:
    """Initialise the cluster and hand out the recovery shares. Role: superuser."""
    from common.clock import SystemClock
    from common.keys.hardening import harden_process
    from pilot.connection import Connection
    from pilot.custody.ceremony import BEFORE_COMMIT, Ceremony
    from pilot.custody.hand_out import Custodians, FileCustodians, ScreenCustodians
    from pilot.terminal.terminal import Terminal

    plan = parse_plan(keeper_threshold, recovery)
    harden_process()  # words are about to be in this process's memory
    custodians: Custodians = ScreenCustodians(Terminal())
    if shares_dir is not None:
        custodians = FileCustodians(shares_dir, set_aside=if_needed)
    connect = _connect_patiently if if_needed else Connection
    with signals_as_interrupt(), connect(settings, preferred=("superuser",)) as connection:
        calls = _Calls(connection)
        if if_needed and (state := calls.load_state(waits=True).name) not in BEFORE_COMMIT:
            _print_left_alone(settings, state)
            return
        ceremony = Ceremony(calls, custodians, clock=SystemClock(), say=print_note)
        initialised = ceremony.run(plan)
    _print(settings, plan, initialised, shares_dir)


def _connect_patiently(settings: Settings, *, preferred: Sequence[str]) -> "Connection":
    """Wait for an identity as well, for as long as one call may take."""
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    from pilot.connection import Connection
    from shardhold._errors import IdentityUnavailableError

    retrying = Retrying(
        retry=retry_if_exception_type(IdentityUnavailableError),
        stop=stop_after_delay(settings.timeout),
        wait=wait_fixed(_LOOK_S),
        reraise=True,
    )
    return retrying(Connection, settings, preferred=preferred)


def parse_plan(keeper_threshold: int, recovery: str) -> "InitPlan":
    """Read the plan from the options.

    Raises:
        UsageError: A threshold is impossible.
    """
    from common.errors import InvalidArgumentError
    from common.keys.words import check_counts
    from pilot.custody.ceremony import InitPlan

    match = _RECOVERY.fullmatch(recovery)
    if match is None:
        raise UsageError(f"--recovery: got {recovery!r}, want K/N, such as {DEFAULT_RECOVERY}")
    threshold, count = int(match[1]), int(match[2])
    try:
        check_counts(threshold, count)
    except InvalidArgumentError as exc:
        raise UsageError(f"--recovery: {exc}") from exc
    if keeper_threshold == 1:
        raise UsageError(
            "--keeper-threshold: got 1, want at least 2", "with 1 each keeper alone would hold the root key"
        )
    return InitPlan(keeper_threshold, threshold, count)


class _Calls:
    """The calls of an init, as messages."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection
        self._cluster = connection.cluster

    def begin(self, plan: "InitPlan", public_key: bytes, hashes: "list[ShareHash]") -> "Begun":
        from pilot.custody.ceremony import Begun
        from shardhold.v1 import cluster_pb2 as pb

        request = pb.BeginInitRequest(
            shard_threshold=plan.keeper_threshold,
            recovery_threshold=plan.recovery_threshold,
            recovery_public_key=public_key,
            share_hashes=[pb.ShareHash(salt=one.salt, digest=one.digest) for one in hashes],
        )
        response = self._connection.call(self._cluster.BeginInit, request)
        return Begun(
            attempt=response.attempt,
            cluster_id=response.cluster_id,
            genesis=response.genesis,
            challenge=response.challenge,
            voided_attempt=response.voided_attempt,
        )

    def confirm(self, attempt: int, answer: bytes) -> tuple[int, int]:
        from shardhold.v1 import cluster_pb2 as pb

        request = pb.ConfirmInitRequest(attempt=attempt, answer=answer)
        response = self._connection.call(self._cluster.ConfirmInit, request, timeout=_CONFIRM_S)
        return response.keepers_filled, response.keepers_wanted

    def abort(self, attempt: int) -> None:
        from shardhold.v1 import cluster_pb2 as pb

        self._connection.call(self._cluster.AbortInit, pb.AbortInitRequest(attempt=attempt))

    def load_state(self, *, waits: bool = False) -> "State":
        from pilot.custody.ceremony import State
        from shardhold.v1 import cluster_pb2 as pb

        response = self._connection.call(self._cluster.GetStatus, pb.GetStatusRequest(), waits=waits)
        return State(show_name(pb.State.Name, response.state, "STATE_"), response.genesis)


def _print(settings: Settings, plan: "InitPlan", initialised: "Initialised", shares_dir: Path | None) -> None:
    begun = initialised.begun
    if settings.output is Output.JSON:
        document: dict[str, Any] = {
            "cluster_id": begun.cluster_id.hex(),
            "genesis": begun.genesis.hex(),
            "attempt": begun.attempt,
            "recovery_threshold": plan.recovery_threshold,
            "recovery_shares": plan.recovery_shares,
            "keepers_filled": initialised.keepers_filled,
            "keepers_wanted": initialised.keepers_wanted,
        }
        print_json(document)
    else:
        print_facts(
            {
                "initialised": begun.cluster_id.hex(),
                "genesis": group_hex(begun.genesis),
                "keepers": _describe_keepers(initialised),
                "recovery": f"any {plan.recovery_threshold} of {plan.recovery_shares} custodians",
            }
        )
    if shares_dir is not None:
        print_note(
            f"{shares_dir} holds all {plan.recovery_shares} recovery shares in one place: anyone who reads "
            f"{plan.recovery_threshold} of its files and the store has every secret. Give each custodian one file, and "
            "delete the files here"
        )


def _print_left_alone(settings: Settings, state: str) -> None:
    if settings.output is Output.JSON:
        print_json({"initialised_before": True, "state": state})
    else:
        print_facts({"left alone": "the cluster was initialised before", "state": state})


def _describe_keepers(initialised: "Initialised") -> str:
    if initialised.keepers_filled is None or initialised.keepers_wanted is None:
        return "the answer was lost; 'pilot status' shows them"
    if initialised.keepers_filled < initialised.keepers_wanted:
        return f"{initialised.keepers_filled} of {initialised.keepers_wanted} wanted hold their shards; others follow"
    return f"{initialised.keepers_filled} hold their shards"
