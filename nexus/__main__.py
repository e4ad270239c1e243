"""`nexus [--config FILE] [--check-config]`: run a nexus. `nexus health [--live] [--config FILE]`: ask it how it is.
`nexus restore [--config FILE] --from BACKUP --identity FILE`: make its store from a backup.
`nexus --version`: say which one this is.

`health` asks over gRPC with the nexus's own identity, and prints the answer. It is healthy when it is ready; with
`--live` any answer will do, as of a nexus that waits to be initialised or for its custodians: to start it again would
not help it.

Exit codes: 0 ended as told, or healthy; 1 failed, or not serving; 2 wrong configuration, before a port is opened; 130
interrupted at a terminal while it restored.
"""

import argparse
import os
import sys
from pathlib import Path

import common.server.preload  # noqa: F401 — before gRPC and structlog are loaded
from common import errors
from common.clock import SystemClock
from common.errors import ConfigError, ShardholdError
from common.failpoint import NEXUS, arm, read_failpoint
from common.keys.hardening import harden_process
from common.keys.protected import Level, ProtectedMemory
from common.server import logs
from common.server.descriptors import allow_descriptors
from common.server.health import SERVING, ask_health
from common.server.identity import open_identity, wait_for_identity
from common.server.termination import Termination, end_process, open_streams, report_crashes
from nexus import __version__
from nexus.config import DEFAULT_CONFIG, NexusConfig, load_config
from shardhold.identity import IdentityUnavailableError

SERVER_NAME = "nexus.shardhold"
HEALTH_TIMEOUT_S = 3.0


def main() -> None:
    """Parse the command line, and exit with the documented code."""
    open_streams()
    parser = argparse.ArgumentParser(prog="nexus", description="The server of a Shardhold cluster.")
    parser.add_argument(
        "command",
        nargs="?",
        choices=["health", "restore"],
        help="health: ask the nexus of this configuration how it is; restore: make its store from a backup",
    )
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"TOML file; default {DEFAULT_CONFIG}")
    parser.add_argument("--live", action="store_true", help="with health: it need not be ready, but has to answer")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    parser.add_argument("--from", dest="backup", type=Path, metavar="BACKUP", help="with restore: the backup")
    parser.add_argument("--identity", type=Path, metavar="FILE", help="with restore: the identity that opens it")
    parser.add_argument(
        "--genesis",
        default="",
        metavar="HEX",
        help="with restore: the fingerprint on the share cards, if not configured",
    )
    parser.add_argument(
        "--replace", action="store_true", help="with restore: a store that is there is kept aside, and replaced"
    )
    arguments = parser.parse_args()
    if arguments.live and arguments.command != "health":
        parser.error("--live belongs to 'nexus health'")
    restores = arguments.command == "restore"
    if restores != bool(arguments.backup and arguments.identity):
        parser.error("'nexus restore' and --from BACKUP --identity FILE belong together")
    if not restores and (arguments.backup or arguments.identity or arguments.genesis or arguments.replace):
        parser.error("--from, --identity, --genesis and --replace belong to 'nexus restore'")
    try:
        config = load_config(arguments.config, os.environ)
        if arguments.check_config:
            sys.exit(0)
        logs.configure(config.log.level, config.log.format)
        if restores:
            end_process(_restore(config, arguments))
        end_process(_ask_health(config, live=arguments.live) if arguments.command else _run(config))
    except (ConfigError, IdentityUnavailableError) as exc:
        sys.stderr.write(f"nexus: error: {exc}\n")
        sys.exit(2 if isinstance(exc, ConfigError) else 1)
    except ShardholdError as exc:
        sys.stderr.write(f"nexus: error: {exc} ({exc.reason})\n")
        sys.exit(1)


def _ask_health(config: NexusConfig, *, live: bool) -> int:
    identity = open_identity(config.identity)
    address = config.listen.admin_address or config.listen.address  # where workloads' connections do not get in the way
    status = ask_health(address, identity, server_name=SERVER_NAME, timeout=HEALTH_TIMEOUT_S)
    sys.stdout.write(f"{status}\n")
    return 0 if live or status == SERVING else 1


def _restore(config: NexusConfig, arguments: argparse.Namespace) -> int:
    from nexus.server.restore import Order, find_genesis, restore

    harden_process()  # what opens every backup is about to be in this process's memory
    genesis = find_genesis(config, arguments.genesis)
    order = Order(arguments.backup, arguments.identity, genesis, replaces=arguments.replace)
    try:
        sys.stdout.write(restore(config, order) + "\n")
    except KeyboardInterrupt:
        sys.stderr.write("\nnexus: error: interrupted\n")
        return 130
    return 0


def _run(config: NexusConfig) -> int:
    from nexus.server.process import (
        Nexus,  # with all that it brings: health, which is asked all the time, needs none of it
    )

    termination = Termination()
    report_crashes()
    harden_process()
    allow_descriptors()
    arm(read_failpoint(config.failpoint, NEXUS, dev=config.dev))
    memory = ProtectedMemory(highest=Level(config.memory.highest_level), lowest=Level(config.memory.lowest_level))
    try:
        identity = wait_for_identity(config.identity, termination)
    except errors.IdentityUnavailableError:
        if termination.is_set():
            return 0
        raise
    try:
        return Nexus(config, memory=memory, identity=identity, clock=SystemClock()).run(termination)
    finally:
        identity.close()


if __name__ == "__main__":
    main()
