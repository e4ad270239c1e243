"""`pilot dev`: a whole cluster on one machine, for development."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel

from pilot.dev.cluster import IDENTITY, RECOVERY_THRESHOLD, DevCluster
from pilot.dev.directory import DevDirectory, DevError, Plan
from pilot.dev.identities import (
    SUPERUSER_PATH,
    TRUST_DOMAIN,
    Identity,
    add_identities,
    custodian_path,
    list_people,
    load_identities,
    parse_workload,
    server_identity,
)
from pilot.errors import UNAVAILABLE, USAGE, described
from pilot.terminal.signals import signals_as_interrupt

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A whole cluster on this machine, for development only."
)

DEFAULT_DIRECTORY = Path("shardhold-dev")
RECOVERY_TIMEOUT_S = 20.0  # a recovery takes a second
UNAIDED_S = 2.0  # if it takes longer, find out why
WATCH_INTERVAL_S = 0.5

DirectoryOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Directory of the cluster.", show_default=True)
]
NameArgument = Annotated[str, typer.Argument(metavar="nexus|keeper-N", help="The process.")]

_console = Console(highlight=False)


@app.command()
def up(
    dir_: DirectoryOption = DEFAULT_DIRECTORY,
    keepers: Annotated[int | None, typer.Option(min=2, max=255, help="Keepers of a new cluster (default 5).")] = None,
    threshold: Annotated[
        int | None, typer.Option(min=2, max=255, help="Keepers that a recovery needs (default 3, or more than half).")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running and return.")] = False,
) -> None:
    """Start a cluster and initialise it; without --detach, take it down at Ctrl-C."""
    if sys.platform != "linux":
        raise DevError("the servers run on Linux only", hint="run it in a container, and pilot wherever you like")
    with signals_as_interrupt():
        directory = DevDirectory(dir_)
        started = time.monotonic()
        _console.print(
            Panel(f"trust domain {TRUST_DOMAIN} · never keep a real secret here", title="FOR DEVELOPMENT ONLY")
        )
        cluster = _open(directory, keepers, threshold)
        with directory.locked():
            cluster.reload()
            before = {name for name in cluster.names if cluster.is_alive(name)}
            try:
                ready = _bring_up(cluster, before)
            except BaseException:
                with _undisturbed():
                    cluster.stop([name for name in cluster.names if name not in before])
                raise
        if ready:
            _console.print(f"[green]ready[/] after {time.monotonic() - started:.1f} s")
        if not detach:
            _stay(cluster, dir_, ready=ready)
            return
        _show_way_on(cluster, dir_, ready=ready)
    raise typer.Exit(0 if ready else UNAVAILABLE)


@app.command()
def down(dir_: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End all processes of the cluster; its files stay."""
    with _changing(dir_) as cluster:
        _take_down(cluster)


@app.command()
def kill(name: NameArgument, dir_: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Kill a process with SIGKILL."""
    with _changing(dir_, name) as cluster:
        ran = cluster.kill(name)
    _console.print(f"{name} killed" if ran else f"{name} did not run")


@app.command()
def restart(name: NameArgument, dir_: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End a process if it runs, and start it again."""
    with _changing(dir_, name) as cluster:
        started = time.monotonic()
        cluster.stop([name])
        cluster.start([name])
        if name == "nexus" and not _comes_back(cluster):
            raise DevError("nexus runs and is not ready", hint=_describe_blocks(cluster), exit_code=UNAVAILABLE)
    _console.print(f"{name} {'ready' if name == 'nexus' else 'runs'} after {time.monotonic() - started:.1f} s")


@app.command()
def env(dir_: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """Print the variables that make pilot and the SDK talk to the cluster as superuser: eval "$(pilot dev env)"."""
    cluster = DevCluster(DevDirectory(dir_))
    if not cluster.is_alive(IDENTITY):
        raise DevError("the cluster does not run", hint="start it: pilot dev up", exit_code=UNAVAILABLE)
    for variable, value in cluster.variables(Identity(path=SUPERUSER_PATH)).items():
        print(f"export {variable}={shlex.quote(value)}")
    if not cluster.is_alive("nexus"):
        print("pilot: hint: the nexus does not run", file=sys.stderr)


@app.command("exec", context_settings={"allow_interspersed_args": False})
def exec_(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="The command and its arguments.")],
    as_: Annotated[str, typer.Option("--as", metavar="PATH", help="Path of the SPIFFE ID, such as /team/app.")],
    dir_: DirectoryOption = DEFAULT_DIRECTORY,
) -> None:
    """Run a command with a workload's identity."""
    directory = DevDirectory(dir_)
    cluster = DevCluster(directory)
    identity = parse_workload(as_)
    with directory.locked():
        cluster.add_identity(identity)
    environ = {**os.environ, **cluster.variables(identity)}
    try:
        os.execvpe(command[0], command, environ)
    except OSError as exc:
        raise DevError(f"{command[0]}: {exc.strerror}", exit_code=127) from exc


@app.command()
def identity(
    dir_: DirectoryOption = DEFAULT_DIRECTORY,
    lifetime: Annotated[float, typer.Option(min=5, metavar="SECONDS", help="Lifetime of SVIDs.")] = 300,
    keepers: Annotated[int, typer.Option(min=2, max=255, help="Keepers that have an identity from the start.")] = 5,
    also: Annotated[list[str] | None, typer.Option("--as", metavar="PATH", help="One more workload.")] = None,
    folders: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Put each socket in a folder of its own, to mount: DIR/NAME/workload.sock."),
    ] = None,
) -> None:
    """Hand out SVIDs and nothing else: a Workload API with one unix socket for each identity, until Ctrl-C."""
    with signals_as_interrupt():
        # Imported here because it imports grpc and spiffe.
        from pilot.dev.serving import serve_identities

        directory = DevDirectory(dir_)
        directory.claim()
        known = load_identities(directory)
        wanted = [parse_workload(path) for path in also or ()]
        if not known:
            wanted += [*list_people(), *map(server_identity, Plan(keepers=keepers).servers)]
        if not set(wanted) <= set(known):  # else `up` holds the lock and has already listed all of its own
            with directory.locked():
                add_identities(directory, *wanted)
        with described(), contextlib.suppress(KeyboardInterrupt):
            serve_identities(
                directory,
                lifetime=timedelta(seconds=lifetime),
                stop=threading.Event(),
                announce=_announce_identity,
                folders=folders,
            )


def _announce_identity(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _changing(dir_: Path, name: str = "") -> Iterator[DevCluster]:
    """Let one command at a time change the cluster, read afresh; check that *name* is one of its servers."""
    directory = DevDirectory(dir_)
    cluster = DevCluster(directory)
    if name:
        cluster.check_name(name)
    with directory.locked():
        cluster.reload()
        yield cluster


def _open(directory: DevDirectory, keepers: int | None, threshold: int | None) -> DevCluster:
    if directory.exists:
        cluster = DevCluster(directory)
        plan = cluster.state.plan
        if keepers not in (None, plan.keepers) or threshold not in (None, plan.threshold):
            raise DevError(
                f"the cluster in {directory.root} has {plan.keepers} keepers and threshold {plan.threshold}",
                hint="omit --keepers and --threshold, or name another directory with --dir",
                exit_code=USAGE,
            )
        return cluster
    keepers = keepers or Plan().keepers
    threshold = threshold or (Plan().threshold if keepers == Plan().keepers else keepers // 2 + 1)
    if threshold > keepers:
        raise DevError(f"--threshold: got {threshold}, want 2 to {keepers}, the number of keepers", exit_code=USAGE)
    return DevCluster.create(directory, Plan(keepers=keepers, threshold=threshold))


def _bring_up(cluster: DevCluster, before: set[str]) -> bool:
    """Start what does not run, initialise a new cluster; return whether the nexus is ready."""
    plan = cluster.state.plan
    with _console.status(f"starting an identity provider, {plan.keepers} keepers and a nexus"):
        cluster.start()
    _say(f"an identity provider, {plan.keepers} keepers and a nexus run, logs in {cluster.directory.logs}")
    if cluster.is_ready():
        return True
    if cluster.load_status()["state"] in ("uninitialised", "initialising"):
        with _console.status("initialising"):
            aside = cluster.init()
        if aside is not None:
            _say(f"the recovery shares of an earlier cluster are kept in {aside}")
        _say(
            f"initialised: any {plan.threshold} of {plan.keepers} keepers bring the nexus back; "
            f"recovery shares in {cluster.directory.recovery_shares}"
        )
        if cluster.wait_ready(timeout=RECOVERY_TIMEOUT_S) is None:
            raise DevError("the nexus is initialised and not ready", hint=cluster.log_tail("nexus"))
        return True
    # Keepers that have just been started are empty: with fewer than a threshold of others, waiting is pointless.
    held = len(before - {"nexus", IDENTITY})
    with _console.status("recovering"):
        return _comes_back(cluster) if held >= plan.threshold else cluster.wait_ready(timeout=1) is not None


def _comes_back(cluster: DevCluster) -> bool:
    """Wait until the nexus is ready; return False if it is not ready in time, or at once if only people can help."""
    if cluster.wait_ready(timeout=UNAIDED_S) is not None:
        return True
    status = cluster.load_status()
    if status["state"] == "sealed" or status["newer_mark"]:
        return False
    return cluster.wait_ready(timeout=RECOVERY_TIMEOUT_S) is not None


def _describe_blocks(cluster: DevCluster) -> str:
    return "; ".join(cluster.load_status()["blocked_by"]) or cluster.log_tail("nexus")


def _show_way_on(cluster: DevCluster, directory: Path, *, ready: bool) -> None:
    option = "" if directory == DEFAULT_DIRECTORY else f" --dir {shlex.quote(str(directory))}"
    if ready:
        _say(f'next:  eval "$(pilot dev env{option})" && pilot status')
        return
    status = cluster.load_status()
    if status["newer_mark"]:
        _say("[yellow]not ready[/]: the store is older than its keepers remember")
        _say(f"look and decide:  pilot dev exec{option} --as {SUPERUSER_PATH} -- pilot status")
        return
    needed = status["recovery_threshold"] or RECOVERY_THRESHOLD
    why = "sealed" if status["state"] == "sealed" else "the keepers were all down at once and forgot their shards"
    _say(f"[yellow]not ready[/]: {why}. {needed} custodians bring it back:")
    for number in range(1, needed + 1):
        card = cluster.directory.recovery_shares / f"custodian-{number}.txt"
        _say(
            f"  pilot dev exec{option} --as {custodian_path(number)} -- pilot unseal {escape(shlex.quote(f'@{card}'))}"
        )
    _say(f'or, once for each share, as superuser:  eval "$(pilot dev env{option})" && pilot unseal')


def _say(text: str) -> None:
    _console.print(text, soft_wrap=True)


def _stay(cluster: DevCluster, directory: Path, *, ready: bool) -> None:
    """Stay until Ctrl-C, SIGTERM or a hang-up, then take everything down."""
    with contextlib.suppress(KeyboardInterrupt):
        _show_way_on(cluster, directory, ready=ready)
        _console.print("Ctrl-C takes it all down")
        _watch(cluster)
    with _undisturbed(), contextlib.ExitStack() as stack:
        if cluster.directory.exists:
            stack.enter_context(cluster.directory.locked())
            cluster.reload()
        if cluster.state.processes:
            _take_down(cluster)


def _watch(cluster: DevCluster) -> None:
    """Report processes that end and come back, until another command takes all down or the directory is removed."""
    alive = set(cluster.names)
    pause = threading.Event()
    while cluster.directory.exists and cluster.state.processes:
        pause.wait(WATCH_INTERVAL_S)
        now = {name for name in cluster.names if cluster.is_alive(name)}
        for name in sorted(alive ^ now):
            _console.print(f"{name} runs again" if name in now else f"[yellow]{name} ended[/]")
        alive = now
        with contextlib.suppress(DevError):
            cluster.reload()


def _take_down(cluster: DevCluster) -> None:
    with _console.status("ending"):
        killed = cluster.stop()
    for name in killed:
        _console.print(f"[yellow]{name} did not end in time and was killed[/]")
    _say(f"down; the files stay in {cluster.directory.root}")


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no signal interrupt a clean-up, which ends on its own."""
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in signums}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
