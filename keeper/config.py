"""The configuration of a keeper: one frozen model, built once at start, the only reader of its sources."""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from common.config.config import (
    IdentityOptions,
    ListenOptions,
    LogOptions,
    MemoryOptions,
    check_address,
    check_drain,
    check_label,
    load,
)
from common.errors import ConfigError
from common.failpoint import KEEPER, read_failpoint
from common.keys.protected import Level

ENVIRONMENT_PREFIX = "SHARDHOLD_KEEPER"
DEFAULT_CONFIG = Path("/etc/shardhold/keeper.toml")


class KeeperListenOptions(ListenOptions, frozen=True, forbid_unknown_fields=True):
    # host:port of gRPC
    address: str = "127.0.0.1:8443"
    # host:port of /livez, /readyz and /metrics
    http: str = "127.0.0.1:9443"


class ShutdownOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # seconds that calls in flight get before they are cut off
    drain_s: float = 2.0


class KeeperConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # name of this keeper; its SVID has the DNS name NAME.keeper.shardhold
    name: str
    # exact SPIFFE IDs of the nexuses that may call
    nexuses: tuple[str, ...]
    # development: allow plain memory instead of protected memory, and failpoints
    dev: bool = False
    # development: where to kill, stop or fail, as NAME:before|after:COUNT:kill|pause|error; empty: nowhere
    failpoint: str = ""
    identity: IdentityOptions
    listen: KeeperListenOptions = KeeperListenOptions()
    memory: MemoryOptions = MemoryOptions()
    shutdown: ShutdownOptions = ShutdownOptions()
    log: LogOptions = LogOptions()

    @property
    def server_name(self) -> str:
        """The DNS name of this keeper's SVID."""
        return f"{self.name}.keeper.shardhold"


def load_config(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> KeeperConfig:
    """Build and check the model from file, environment and flags.

    Raises:
        ConfigError: The option is named, with what it was and what is wanted.
    """
    config = load(KeeperConfig, path=path, environ=environ, prefix=ENVIRONMENT_PREFIX, flags=flags or {})
    check_label("name", config.name)
    check_address("listen.address", config.listen.address)
    check_address("listen.http", config.listen.http)
    _check_nexuses(config.nexuses, config.identity.trust_domain)
    check_drain(config.shutdown.drain_s)
    read_failpoint(config.failpoint, KEEPER, dev=config.dev)
    if config.memory.lowest_level < Level.LOCKED and not config.dev:
        raise ConfigError(
            f"memory.lowest_level: got {config.memory.lowest_level}, want 2 or 3 (1 only with dev = true)"
        )
    return config


def _check_nexuses(nexuses: tuple[str, ...], trust_domain: str) -> None:
    if not nexuses:
        raise ConfigError("nexuses: got none, want the exact SPIFFE IDs of the nexuses that may call")
    for index, nexus in enumerate(nexuses):
        if not re.fullmatch(rf"spiffe://{re.escape(trust_domain)}(/[A-Za-z0-9._-]+)+", nexus):
            raise ConfigError(f"nexuses[{index}]: got {nexus[:256]!r}, want an exact SPIFFE ID of {trust_domain}")
