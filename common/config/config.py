"""The loader of configuration, and the sections that nexus and keeper have in common.

A model is a tree of frozen msgspec structs: sections are structs, options their fields, and the comment above a field
gives its meaning and unit. Durations and sizes are plain numbers with the unit in the name (`_s`, `_ms`, `_bytes`,
`_mib`). Sources, the later one wins: the TOML file, the environment (`PREFIX__SECTION__OPTION`), flags.

Each error names the option, what it got and what it wants. Long or multi-line values are not echoed, nor is the value
of an unknown option: it may be something that does not belong in a configuration.
"""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import NODEFAULT, Meta

from common.config.options import is_struct, item_type, join, name_type, name_value, unwrap, value_type
from common.errors import ConfigError

T = TypeVar("T", bound=msgspec.Struct)

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_BOOLEANS = {"true": True, "false": False}


class IdentityOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # trust domain of the cluster
    trust_domain: Annotated[str, Meta(pattern=r"^[a-z0-9._-]{1,255}\Z", description="a trust domain without spiffe://")]
    # where SVIDs come from: "workload-api", or "files" that something else keeps up to date
    source: Literal["workload-api", "files"] = "workload-api"
    # socket of the Workload API, as unix:///PATH; empty: SPIFFE_ENDPOINT_SOCKET
    socket: str = ""
    # folder with svid.pem, svid_key.pem and bundle.pem, for source "files"
    svid_dir: str = ""
    # with source "files": take authorities that name no trust domain; only where bundle.pem has no other domain's
    unnamed_authorities: bool = False

    def __post_init__(self) -> None:
        if self.source == "files" and not self.svid_dir:
            raise ConfigError('identity.svid_dir: got nothing, want a folder, since identity.source is "files"')


class ListenOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # host:port of gRPC
    address: str
    # host:port of /livez, /readyz and /metrics
    http: str
    # threads that serve calls
    workers: Annotated[int, Meta(ge=1, le=256)] = 8
    # seconds after which a connection is replaced, so that a peer shows a fresh SVID
    max_connection_age_s: Annotated[int, Meta(ge=1)] = 3600


class LogOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # lowest level that is logged
    level: Literal["debug", "info", "warning", "error"] = "info"
    # "json", "console", or "auto": console when stderr is a terminal
    format: Literal["auto", "json", "console"] = "auto"


class MemoryOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    # lowest level of protected memory that it starts with: 3 memfd_secret, 2 locked, 1 plain
    lowest_level: Annotated[int, Meta(ge=1, le=3)] = 2
    # highest level that is tried
    highest_level: Annotated[int, Meta(ge=1, le=3)] = 3

    def __post_init__(self) -> None:
        if self.lowest_level > self.highest_level:
            raise ConfigError(
                f"memory.lowest_level: got {self.lowest_level}, want at most highest_level ({self.highest_level})"
            )


def load(
    model: type[T],
    *,
    path: Path | None,
    environ: Mapping[str, str],
    prefix: str,
    flags: Mapping[str, Any] | None = None,
) -> T:
    """Build *model* from the file at *path* (None: no file), the environment and flags.

    Only those variables of *environ* are read that start with *prefix* and `__`; each must name an option. *flags* maps
    dotted options to values, as text or in the option's own type; None means not given. Lists of tables,
    and tables with free keys, come from the file only.

    Raises:
        ConfigError: An option is unknown, missing or wrong, the file cannot be read, or GRPC_TRACE is set.
    """
    if environ.get("GRPC_TRACE"):
        raise ConfigError("GRPC_TRACE: want it unset: its traces show what callers send and receive, secrets included")
    tree = _read(path) if path else {}
    for variable in sorted(environ):
        if variable.startswith(f"{prefix}__"):
            dotted = variable.removeprefix(f"{prefix}__").lower().replace("__", ".")
            _overlay(model, tree, dotted, environ[variable], source=f" (from {variable})")
    for dotted, value in (flags or {}).items():
        if value is not None:
            _overlay(model, tree, dotted, value, source="")
    return _build(model, tree, "")


def split_address(name: str, value: str) -> tuple[str, int]:
    """Take `host:port` or `[IPv6]:port` apart; port 0 lets the kernel choose one.

    Raises:
        ConfigError: *value* is something else; *name* is the option that it came from.
    """
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not (colon and host and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise ConfigError(f"{name}: got {name_value(value)}, want host:port")
    return host, int(port)


def check_address(name: str, value: str) -> None:
    """Refuse anything that is not `host:port`.

    Raises:
        ConfigError: *name* is the option that *value* came from.
    """
    split_address(name, value)


def check_label(name: str, value: str) -> None:
    """Refuse anything that is not a DNS label: a keeper's name is part of the DNS name in its SVID.

    Raises:
        ConfigError: *name* is the option that *value* came from.
    """
    if not _LABEL.fullmatch(value):
        raise ConfigError(
            f"{name}: got {name_value(value)}, want a DNS label: a-z, 0-9 and - inside, at most 63 characters"
        )


def check_drain(seconds: float) -> None:
    """Refuse a negative `shutdown.drain_s`.

    Raises:
        ConfigError: *seconds* is negative.
    """
    if seconds < 0:
        raise ConfigError(f"shutdown.drain_s: got {seconds}, want 0 or more seconds")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigError(f"configuration file {path} cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"configuration file {path} is not UTF-8, want TOML") from exc
    except RecursionError as exc:
        raise ConfigError(f"configuration file {path} is nested too deeply") from exc
    except ValueError as exc:  # a TOMLDecodeError, or a bare one for a number with thousands of digits
        raise ConfigError(f"configuration file {path} is not TOML: {exc}") from exc


def _overlay(model: type[msgspec.Struct], tree: dict[str, Any], dotted: str, value: Any, *, source: str) -> None:
    """Put one value from the environment or a flag into *tree*, converted from text to the type of its option."""
    *sections, option = dotted.split(".")
    at = ""
    for section in sections:
        kind = _kind_of(model, section, at, whole=dotted + source)
        at = join(at, section)
        if not is_struct(kind):
            raise ConfigError(f"{dotted}{source}: no such option, {at} is not a table")
        model = kind
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{at}: got {name_value(tree)}, want a table")
    kind = _kind_of(model, option, at, whole=dotted + source)
    if is_struct(kind) or is_struct(item_type(kind)) or value_type(kind):
        raise ConfigError(f"{dotted}{source}: got {name_value(value)}, want tables, which only the file can hold")
    tree[option] = _check(dotted, _from_text(kind, value) if isinstance(value, str) else value, kind, source)


def _from_text(kind: Any, text: str) -> Any:
    """Convert text to the option's type; text that does not convert is returned as it is, for `_check` to refuse."""
    bare, _ = unwrap(kind)
    if item := item_type(bare):
        return [_from_text(item, part.strip()) for part in text.split(",")] if text.strip() else []
    if bare is bool:
        return _BOOLEANS.get(text.lower(), text)
    if bare in (int, float):
        try:
            return bare(text)
        except ValueError:
            return text
    return text


def _build(model: type[T], tree: dict[str, Any], at: str) -> T:
    """Make *model* from a table, checking each option; missing sections are built from their defaults."""
    for name in tree:
        _kind_of(model, name, at, whole=join(at, name))
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(model):
        dotted = join(at, field.name)
        required = field.default is NODEFAULT and field.default_factory is NODEFAULT
        if field.name in tree:
            values[field.name] = _check(dotted, tree[field.name], field.type)
        elif required and is_struct(field.type):
            values[field.name] = _build(field.type, {}, dotted)
        elif required:
            raise ConfigError(f"{dotted}: got nothing, want {name_type(field.name, field.type)}")
    return model(**values)


def _check(dotted: str, value: Any, kind: Any, source: str = "") -> Any:
    """Return *value* as *kind*; lists become tuples where the model says so."""
    item = item_type(kind)
    if is_struct(kind) and isinstance(value, dict):
        return _build(kind, value, dotted)
    if item and isinstance(value, list):
        return tuple(_check(f"{dotted}[{index}]", part, item, source) for index, part in enumerate(value))
    if (of_each := value_type(kind)) and isinstance(value, dict):
        return {key: _check(f'{dotted}."{key}"', part, of_each, source) for key, part in value.items()}
    try:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("not a finite number")
        return msgspec.convert(value, kind)
    except ValueError as exc:  # a msgspec.ValidationError is one; its own message says less
        wanted = name_type(dotted.rpartition(".")[2], kind)
        raise ConfigError(f"{dotted}{source}: got {name_value(value)}, want {wanted}") from exc


def _kind_of(model: type[msgspec.Struct], name: str, at: str, *, whole: str) -> Any:
    kinds = {field.name: field.type for field in msgspec.structs.fields(model)}
    if name not in kinds:
        near = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {join(at, near[0])}?" if near else f"want one of {', '.join(kinds)}"
        raise ConfigError(f"{whole.lstrip()}: no such option, {hint}")
    return kinds[name]
