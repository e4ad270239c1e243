"""The configuration of a nexus: one frozen model, built once at start; nobody else reads its sources."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

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
from nexus.access.roles import Roles

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

ENVIRONMENT_PREFIX = "SHARDHOLD_NEXUS"


class NexusListenOptions(ListenOptions, frozen=True, forbid_unknown_fields=True):
    # host:port of gRPC
    address: str = "127.0.0.1:8553"
    # host:port of /livez, /readyz and /metrics
    http: str = "127.0.0.1:9553"
    # calls of one caller that may wait or run, of 1024 in all; further ones are refused
    max_calls_per_caller: Annotated[int, Meta(ge=1, le=1024)] = 256


class StorageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # file of the embedded store; its folder must exist, be writable and hold nothing else
    path: str = "/var/lib/shardhold/data/nexus.db"


class AuditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # folder of the audit segments; must exist, be writable and hold nothing else
    directory: str = "/var/lib/shardhold/audit"


class KeeperOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # name of the keeper; its server name is NAME.keeper.shardhold
    name: str
    # host:port
    address: str
    # exact SPIFFE ID; empty: spiffe://TRUST_DOMAIN/shardhold/keeper/NAME
    spiffe_id: str = ""


class RoleOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # path of the SPIFFE IDs of people; ROLE and PERSON stand for one segment each
    pattern: str = "/shardhold/pilot/role/ROLE/PERSON"


class ShutdownOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # seconds that calls in flight get before they are cut off
    drain_s: float = 5.0


class NexusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # name of this nexus; its SPIFFE ID is spiffe://TRUST_DOMAIN/shardhold/nexus/NAME
    name: str
    # development: allow plain memory instead of protected memory
    dev: bool = False
    identity: IdentityOptions
    listen: NexusListenOptions = NexusListenOptions()
    storage: StorageOptions = StorageOptions()
    audit: AuditOptions = AuditOptions()
    roles: RoleOptions = RoleOptions()
    memory: MemoryOptions = MemoryOptions()
    shutdown: ShutdownOptions = ShutdownOptions()
    log: LogOptions = LogOptions()
    # keepers that the first init uses; afterwards only their addresses count
    keepers: tuple[KeeperOptions, ...] = ()


def load_config(
    path: Path | None, environ: Mapping[str, str], flags: Mapping[str, object] | None = None
) -> NexusConfig:
    """Build and check the model from file, environment and flags.

    Raises:
        ConfigError: The option is named, with what it was and what is wanted.
    """
    config = load(NexusConfig, path=path, environ=environ, prefix=ENVIRONMENT_PREFIX, flags=flags or {})
    check_address("listen.address", config.listen.address)
    check_address("listen.http", config.listen.http)
    if _NAME.fullmatch(config.name) is None:
        raise ConfigError(f"name: got {config.name[:64]!r}, want 1 to 64 of A-Z a-z 0-9 . _ -")
    check_drain(config.shutdown.drain_s)
    Roles(config.identity.trust_domain, pattern=config.roles.pattern)  # names roles.pattern when it is wrong
    _check_keepers(config.keepers)
    _check_folders(path, config)
    if config.memory.lowest_level < 2 and not config.dev:
        raise ConfigError(
            f"memory.lowest_level: got {config.memory.lowest_level}, want 2 or 3 (1 only with dev = true)"
        )
    return config


def _check_folders(file: Path | None, config: NexusConfig) -> None:
    """Look that configuration, data and audit stand apart, each with rights and a disk of its own."""
    folders = {
        "storage.path": Path(config.storage.path).parent.resolve(),
        "audit.directory": Path(config.audit.directory).resolve(),
    }
    if file is not None:
        folders["--config"] = file.parent.resolve()
    for (name, folder), (other_name, other) in itertools.permutations(folders.items(), 2):
        if folder == other or other in folder.parents:
            raise ConfigError(f"{name}: got the folder {folder}, want one that is not in {other}, {other_name}'s")


def _check_keepers(keepers: tuple[KeeperOptions, ...]) -> None:
    if not 2 <= len(keepers) <= 255:
        raise ConfigError(f"keepers: got {len(keepers)}, want 2 to 255")
    for index, keeper in enumerate(keepers):
        check_address(f"keepers[{index}].address", keeper.address)
        check_label(f"keepers[{index}].name", keeper.name)
    for option in ("name", "address", "spiffe_id"):
        values = [getattr(keeper, option) for keeper in keepers if getattr(keeper, option)]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"keepers: {option} {twice!r} stands twice, want each once")
