"""`nexus --config FILE [--check-config]`: run a nexus. `nexus health --config FILE`: ask it how it is.

Exit codes: 0 ended as told, or healthy; 1 failed, or not serving; 2 wrong configuration, before a port is opened.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

import structlog

from common import logs
from common.clock import SystemClock
from common.errors import ConfigError, ShardholdError
from common.hardening import harden_process
from common.identity import check_health, open_identity
from common.protected import Level, ProtectedMemory
from nexus.config import NexusConfig, load_config

SERVER_NAME = "nexus.shardhold"

log = structlog.get_logger("nexus")


def main() -> None:
    """Parse the command line, and exit with the documented code."""
    parser = argparse.ArgumentParser(prog="nexus", description="The server of a Shardhold cluster.")
    parser.add_argument("command", nargs="?", choices=["health"], help="ask the nexus of this configuration how it is")
    parser.add_argument("--config", type=Path, required=True, help="TOML file")
    parser.add_argument("--check-config", action="store_true", help="check the configuration and exit")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.config, os.environ)
    except ConfigError as exc:
        print(f"nexus: error: {exc}", file=sys.stderr)  # noqa: T201 — logs are not configured yet
        sys.exit(2)
    if arguments.check_config:
        sys.exit(0)
    logs.configure(config.log.level, config.log.format)
    if arguments.command == "health":
        sys.exit(check_health(config.identity, config.listen.address, SERVER_NAME))
    sys.exit(_run(config))


def _run(config: NexusConfig) -> int:
    try:
        harden_process()
        memory = ProtectedMemory(highest=Level(config.memory.highest_level), lowest=Level(config.memory.lowest_level))
        identity = open_identity(config.identity)
        from nexus.process import Nexus

        nexus = Nexus(config, memory=memory, identity=identity, clock=SystemClock())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: nexus.stop())
        return nexus.run()
    except ConfigError as exc:
        log.critical("cannot start", error=str(exc))
        return 2
    except ShardholdError as exc:
        log.critical("cannot start", error=str(exc), reason=exc.reason)
        return 1


if __name__ == "__main__":
    main()
