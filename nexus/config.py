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
    split_address,
)
from common.config.options import name_value
from common.errors import ConfigError, InvalidArgumentError
from common.failpoint import NEXUS, read_failpoint
from common.forms.bech32 import decode_recipient
from nexus.access.roles import Roles
from nexus.keys.operation.schedule import Terms
from nexus.keys.operation.windows import DAY, FORM, Window, parse_window

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

ENVIRONMENT_PREFIX = "SHARDHOLD_NEXUS"
DEFAULT_CONFIG = Path("/etc/shardhold/nexus.toml")


class NexusListenOptions(ListenOptions, frozen=True, forbid_unknown_fields=True):
    # host:port of gRPC
    address: str = "127.0.0.1:8553"
    # host:port of /livez, /readyz and /metrics
    http: str = "127.0.0.1:9553"
    # host:port of gRPC for people alone, with workers and connections of its own; empty: people call address only
    admin_address: str = ""
    # calls of one caller that may wait or run, of 1024 in all; further ones are refused
    max_calls_per_caller: Annotated[int, Meta(ge=1, le=1024)] = 256


class StorageOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # file of the embedded store; its folder must exist, be writable and hold nothing else
    path: str = "/var/lib/shardhold/data/nexus.db"


class AuditOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # folder of the audit segments; must exist, be writable and hold nothing else
    directory: str = "/var/lib/shardhold/audit"


class BackupOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # folder of the backups; must exist and be writable, on another disk than the data if possible; empty: no backups
    directory: str = ""
    # who can open backups without this cluster, as age1…; their identities belong elsewhere, never on this machine
    recipients: tuple[str, ...] = ()


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


class RotationOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # let the nexus begin operations by itself; what is due is said all the same
    enabled: bool = True
    # days after which the root key is replaced, at least minimum_age_days; 0: by hand only
    interval_days: Annotated[int, Meta(ge=0, le=36_500)] = 365
    # days that a root key stays at least; by hand only `--force` is earlier
    minimum_age_days: Annotated[int, Meta(ge=0, le=36_500)] = 30
    # when an operation may begin by itself, as "Sat 01:00-05:00 UTC" or "daily 22:00-02:00 UTC"; empty: at any time
    windows: tuple[str, ...] = ()
    # days after which keepers get new shards of the same root key; 0: never by itself
    reshare_interval_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    # days that the newest verified backup may be old when the root key is replaced
    backup_max_age_days: Annotated[int, Meta(ge=1, le=36_500)] = 7
    # rows that are wrapped anew in a second at most, after a rotation; 0: as many as calls in flight allow
    rewrap_rows_per_second: Annotated[int, Meta(ge=0, le=1_000_000)] = 0

    @property
    def terms(self) -> Terms:
        """What the schedule goes by.

        Raises:
            ConfigError: A window has another form.
        """
        return Terms(
            is_enabled=self.enabled,
            interval=self.interval_days * DAY,
            minimum_age=self.minimum_age_days * DAY,
            windows=tuple(_read_window(index, text) for index, text in enumerate(self.windows)),
            reshare_interval=self.reshare_interval_days * DAY,
            backup_max_age=self.backup_max_age_days * DAY,
            rows_per_second=self.rewrap_rows_per_second,
        )


class NexusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    # name of this nexus; its SPIFFE ID is spiffe://TRUST_DOMAIN/shardhold/nexus/NAME
    name: str
    # genesis fingerprint of the one cluster that it may serve, 64 hex digits as on the share cards; empty: any
    genesis: str = ""
    # development: allow plain memory instead of protected memory, and failpoints
    dev: bool = False
    # development: where to kill, stop or fail, as NAME:before|after:COUNT:kill|pause|error; empty: nowhere
    failpoint: str = ""
    identity: IdentityOptions
    listen: NexusListenOptions = NexusListenOptions()
    storage: StorageOptions = StorageOptions()
    audit: AuditOptions = AuditOptions()
    backup: BackupOptions = BackupOptions()
    roles: RoleOptions = RoleOptions()
    memory: MemoryOptions = MemoryOptions()
    shutdown: ShutdownOptions = ShutdownOptions()
    rotation: RotationOptions = RotationOptions()
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
    _check_admin_address(config.listen)
    if _NAME.fullmatch(config.name) is None:
        raise ConfigError(f"name: got {config.name[:64]!r}, want 1 to 64 of A-Z a-z 0-9 . _ -")
    if config.genesis and _FINGERPRINT.fullmatch(config.genesis) is None:
        raise ConfigError(f"genesis: got {config.genesis[:80]!r}, want 64 digits of 0-9 a-f, or nothing")
    check_drain(config.shutdown.drain_s)
    _check_rotation(config.rotation)
    Roles(config.identity.trust_domain, pattern=config.roles.pattern)  # names roles.pattern when it is wrong
    _check_keepers(config.keepers)
    _check_backup(config.backup)
    _check_folders(path, config)
    read_failpoint(config.failpoint, NEXUS, dev=config.dev)
    if config.memory.lowest_level < 2 and not config.dev:
        raise ConfigError(
            f"memory.lowest_level: got {config.memory.lowest_level}, want 2 or 3 (1 only with dev = true)"
        )
    return config


def _check_admin_address(listen: NexusListenOptions) -> None:
    if not listen.admin_address:
        return
    _, port = split_address("listen.admin_address", listen.admin_address)
    if port and listen.admin_address in (listen.address, listen.http):
        raise ConfigError(f"listen.admin_address: got {listen.admin_address!r}, want a port of its own")


def _check_rotation(rotation: RotationOptions) -> None:
    terms = rotation.terms  # names a wrong window
    if 0 < terms.interval < terms.minimum_age:
        raise ConfigError(
            f"rotation.interval_days: got {rotation.interval_days}, "
            f"want 0, or at least minimum_age_days ({rotation.minimum_age_days})"
        )


def _read_window(index: int, text: str) -> Window:
    try:
        return parse_window(text)
    except ValueError as exc:
        raise ConfigError(f"rotation.windows[{index}]: got {name_value(text)}, want {FORM}") from exc


def _check_backup(backup: BackupOptions) -> None:
    if bool(backup.directory) != bool(backup.recipients):
        empty = "recipients" if backup.directory else "directory"
        raise ConfigError(f"backup.{empty}: got nothing, want backup.directory and backup.recipients, or neither")
    for index, recipient in enumerate(backup.recipients):
        try:
            decode_recipient(recipient)
        except InvalidArgumentError as exc:
            raise ConfigError(f"backup.recipients[{index}]: {str(exc).removeprefix('recipient: ')}") from exc
    if len(set(backup.recipients)) < len(backup.recipients):
        raise ConfigError("backup.recipients: one stands twice, want each once")


def _check_folders(file: Path | None, config: NexusConfig) -> None:
    """Look that configuration, data, audit and backups stand apart, each with rights and a disk of its own."""
    folders = {
        "storage.path": Path(config.storage.path).parent.resolve(),
        "audit.directory": Path(config.audit.directory).resolve(),
    }
    if config.backup.directory:
        folders["backup.directory"] = Path(config.backup.directory).resolve()
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
