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
from rich.panel import Panel

from pilot.dev.cluster import IDENTITY, DevCluster
from pilot.dev.directory import DevDirectory, DevError, Plan
from pilot.dev.identities import (
    SUPERUSER_PATH,
    TRUST_DOMAIN,
    Identity,
    add_identities,
    list_people,
    load_identities,
    parse_workload,
    server_identity,
)
from pilot.dev.upbringing import (
    DEFAULT_DIRECTORY,
    ByHand,
    bring_up,
    comes_back,
    console,
    describe_blocks,
    is_initialised,
    say,
    show_way_on,
)
from pilot.errors import UNAVAILABLE, USAGE, described
from pilot.terminal.signals import signals_as_interrupt

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="A whole cluster on this machine, for development only."
)

WATCH_INTERVAL_S = 0.5

DirectoryOption = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Directory of the cluster.", show_default=True)
]
NameArgument = Annotated[str, typer.Argument(metavar="nexus|keeper-N", help="The process.")]


@app.command()
def up(
    dir_: DirectoryOption = DEFAULT_DIRECTORY,
    keepers: Annotated[int | None, typer.Option(min=2, max=255, help="Keepers of a new cluster (default 5).")] = None,
    threshold: Annotated[
        int | None, typer.Option(min=2, max=255, help="Keepers that a recovery needs (default 3, or more than half).")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave it running and return.")] = False,
    no_init: Annotated[
        bool, typer.Option("--no-init", help="Leave a new cluster uninitialised, to practise 'pilot init'.")
    ] = False,
    no_unseal: Annotated[
        bool, typer.Option("--no-unseal", help="Do not bring it back after a reboot, to practise 'pilot unseal'.")
    ] = False,
) -> None:
    """Start a cluster and initialise it, or bring it back after a reboot; without --detach, take it down at Ctrl-C."""
    if sys.platform != "linux":
        raise DevError("the servers run on Linux only", hint="run it in a container, and pilot wherever you like")
    with signals_as_interrupt():
        directory = DevDirectory(dir_)
        started = time.monotonic()
        console.print(
            Panel(f"trust domain {TRUST_DOMAIN} · never keep a real secret here", title="FOR DEVELOPMENT ONLY")
        )
        cluster = _open(directory, keepers, threshold)
        with directory.locked():
            cluster.reload()
            before = {name for name in cluster.names if cluster.is_alive(name)}
            try:
                ready = bring_up(cluster, before, by_hand=ByHand(init=no_init, unseal=no_unseal))
            except BaseException:
                with _undisturbed():
                    cluster.stop([name for name in cluster.names if name not in before])
                raise
        if ready:
            console.print(f"[green]ready[/] after {time.monotonic() - started:.1f} s")
        if not detach:
            _stay(cluster, dir_, ready=ready)
            return
        show_way_on(cluster, dir_, ready=ready)
        is_as_wanted = ready or (no_init and not is_initialised(cluster))
    raise typer.Exit(0 if is_as_wanted else UNAVAILABLE)


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
    console.print(f"{name} killed" if ran else f"{name} did not run")


@app.command()
def restart(name: NameArgument, dir_: DirectoryOption = DEFAULT_DIRECTORY) -> None:
    """End a process if it runs, and start it again."""
    with _changing(dir_, name) as cluster:
        started = time.monotonic()
        cluster.stop([name])
        cluster.start([name])
        if name == "nexus" and not comes_back(cluster):
            raise DevError("nexus runs and is not ready", hint=describe_blocks(cluster), exit_code=UNAVAILABLE)
    console.print(f"{name} {'ready' if name == 'nexus' else 'runs'} after {time.monotonic() - started:.1f} s")


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
    if environ.get("GRPC_VERBOSITY") == "NONE":  # pilot's own setting, as `pilot run` has it
        del environ["GRPC_VERBOSITY"]
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python, which a program need not expect
        signal.signal(ignored, signal.SIG_DFL)
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
        directory.claim()
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


def _stay(cluster: DevCluster, directory: Path, *, ready: bool) -> None:
    """Stay until Ctrl-C, SIGTERM or a hang-up, then take everything down."""
    with contextlib.suppress(KeyboardInterrupt):
        show_way_on(cluster, directory, ready=ready)
        console.print("Ctrl-C takes it all down")
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
            console.print(f"{name} runs again" if name in now else f"[yellow]{name} ended[/]")
        alive = now
        with contextlib.suppress(DevError):
            cluster.reload()


def _take_down(cluster: DevCluster) -> None:
    with console.status("ending"):
        killed = cluster.stop()
    for name in killed:
        console.print(f"[yellow]{name} did not end in time and was killed[/]")
    say(f"down; the files stay in {cluster.directory.root}")


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
