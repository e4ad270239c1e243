"""The configuration files of a development cluster's servers, as TOML."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pilot.dev.backups import find_recipient
from pilot.dev.directory import DevDirectory, State
from pilot.dev.identities import TRUST_DOMAIN, server_identity
from pilot.dev.ports import HOST

# Options of one table.
Options = Mapping[str, str | int | bool | Sequence[str]]

_HEADER = "# Written by `pilot dev` at each start: for development only.\n"


def write_config(directory: DevDirectory, state: State, name: str) -> None:
    """Write the configuration file of the server *name*: nexus, keeper-1 …"""
    text = _nexus(directory, state) if name == "nexus" else _keeper(state, name)
    file = directory.config(name)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    directory.replace_file(file, text.encode())


def socket_path(state: State, name: str) -> Path:
    """Return the socket on which the server *name* gets its SVID."""
    return Path(state.sockets) / server_identity(name).socket_name


def _nexus(directory: DevDirectory, state: State) -> str:
    tables = _shared_tables(state, "nexus") | {
        "storage": {"path": str(directory.data / "nexus.db")},
        "audit": {"directory": str(directory.audit)},
        "rotation": {"minimum_age_days": 0},
        "backup": {"directory": str(directory.backups), "recipients": [find_recipient(directory)], "interval_hours": 0},
    }
    text = _HEADER + _to_toml({"name": "nexus-1", "dev": True}, tables)
    for name in state.plan.servers:
        if name != "nexus":
            text += "\n[[keepers]]\n" + _to_lines({"name": name, "address": f"{HOST}:{state.ports[name].grpc}"})
    return text


def _keeper(state: State, name: str) -> str:
    top: Options = {"name": name, "dev": True, "nexuses": [server_identity("nexus").spiffe_id]}
    return _HEADER + _to_toml(top, _shared_tables(state, name))


def _shared_tables(state: State, name: str) -> dict[str, Options]:
    ports = state.ports[name]
    return {
        "identity": {
            "trust_domain": TRUST_DOMAIN,
            "source": "workload-api",
            "socket": f"unix:{socket_path(state, name)}",
        },
        "listen": {"address": f"{HOST}:{ports.grpc}", "http": f"{HOST}:{ports.http}"},
        "memory": {"lowest_level": state.plan.lowest_level, "highest_level": state.plan.highest_level},
    }


def _to_toml(top: Options, tables: Mapping[str, Options]) -> str:
    return _to_lines(top) + "".join(f"\n[{table}]\n{_to_lines(options)}" for table, options in tables.items())


def _to_lines(options: Options) -> str:
    # JSON writes strings, numbers, booleans and lists of strings the way TOML reads them.
    return "".join(f"{option} = {json.dumps(value, ensure_ascii=False)}\n" for option, value in options.items())
