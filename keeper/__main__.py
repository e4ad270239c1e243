"""`keeper [--config FILE] [--check-config]`: run a keeper. `keeper health [--config FILE]`: ask it how it is.

`health` is well when the keeper serves; with `--holds-shard` when it serves and holds a shard. A keeper that has just
started holds none until the nexus gives it its own. Whether a shard is of the current set only the nexus knows.

Exit codes: 0 ended as told, or serving; 1 failed, or not serving; 2 wrong configuration, before a port is opened.
A keeper writes no file. What it holds is wiped when it ends, and gone when it is killed.
"""

import argparse
import os
import sys
import threading
from pathlib import Path

import common.server.preload  # noqa: F401
from common.errors import ConfigError, IdentityUnavailableError, ShardholdError
from common.failpoint import KEEPER, arm, read_failpoint
from common.keys.hardening import harden_process
from common.keys.protected import Level, ProtectedMemory
from common.server import logs
from common.server.descriptors import allow_descriptors
from common.server.health import HOLDS_SHARD, SERVING, ask_health
from common.server.identity import wait_for_identity
from common.server.termination import Termination, end_process, open_streams, report_crashes
from keeper.config import DEFAULT_CONFIG, KeeperConfig, load_config

_HEALTH_TIMEOUT_S = 3.0


def main() -> None:
    """Parse the command line, and exit with the documented code."""
    open_streams()
    parser = argparse.ArgumentParser(prog="keeper", description="Holds one shard of a Shardhold cluster's root key.")
    parser.add_argument("command", nargs="?", choices=["health"], help="ask the keeper of this configuration how it is")
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help=f"TOML file; default {DEFAULT_CONFIG}")
    parser.add_argument(
        "--holds-shard",
        action="store_true",
        help="with health: it has to hold a shard; whether of the current set, only the nexus knows (pilot status)",
    )
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    arguments = parser.parse_args()
    if arguments.holds_shard and arguments.command != "health":
        parser.error("--holds-shard belongs to 'keeper health'")
    try:
        config = load_config(arguments.config, os.environ)
        if arguments.check_config:
            sys.exit(0)
        logs.configure(config.log.level, config.log.format)
        end_process(_ask_health(config, arguments.holds_shard) if arguments.command else _run(config))
    except ConfigError as exc:
        print(f"keeper: error: {exc}", file=sys.stderr)  # noqa: T201 — for the person who starts it, logs or not
        sys.exit(2)
    except ShardholdError as exc:
        print(f"keeper: error: {exc} ({exc.reason})", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def _ask_health(config: KeeperConfig, holds_shard: bool) -> int:
    given_up = threading.Event()
    given_up.set()
    identity = wait_for_identity(config.identity, given_up)  # one try
    status = ask_health(
        config.listen.address,
        identity,
        server_name=config.server_name,
        timeout=_HEALTH_TIMEOUT_S,
        condition=HOLDS_SHARD if holds_shard else "",
    )
    sys.stdout.write(f"{status}\n")
    return 0 if status == SERVING else 1


def _run(config: KeeperConfig) -> int:
    from keeper.process import Keeper  # with all that it brings: health, which is asked all the time, needs none of it

    termination = Termination()
    report_crashes()
    harden_process()
    allow_descriptors()
    arm(read_failpoint(config.failpoint, KEEPER, dev=config.dev))
    memory = ProtectedMemory(highest=Level(config.memory.highest_level), lowest=Level(config.memory.lowest_level))
    try:
        identity = wait_for_identity(config.identity, termination)
    except IdentityUnavailableError:
        if termination.is_set():
            return 0
        raise
    try:
        Keeper(config, memory, identity).run(termination)
    finally:
        identity.close()
    return 0


if __name__ == "__main__":
    main()
