"""The global options, before or after the command; those after it win."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from pilot.errors import UsageError, described
from pilot.terminal.output import Output

DEFAULT_PORT = 8553
DEFAULT_ADDRESS = f"127.0.0.1:{DEFAULT_PORT}"
DEFAULT_TIMEOUT_S = 10.0
ADDRESS_VARIABLE = "SHARDHOLD_ADDRESS"
LARGEST_NUMBER = 2**64 - 1  # the most that versions and their like can be on the wire
_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+(?:%\w+)?\]|[^\s:/@\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_BARE_IPV6 = re.compile(r"[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")
_LONGEST_TIMEOUT_S = 24 * 3600.0  # far beyond it gRPC treats a deadline as one that has passed


@dataclass(frozen=True, slots=True)
class Settings:
    """What the global options say."""

    output: Output = Output.TABLE
    address: str = DEFAULT_ADDRESS
    svid_dir: Path | None = None
    unnamed_authorities: bool = False
    timeout: float = DEFAULT_TIMEOUT_S  # seconds for each call
    role: str | None = None


OutputOption = Annotated[
    Output | None,
    typer.Option(
        "-o",
        "--output",
        metavar="|".join(Output),
        help="Form of the output; toml: policies only. Default: table.",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST[:PORT]",
        help=f"The nexus, on port {DEFAULT_PORT} if none is named. Default: {ADDRESS_VARIABLE}, or {DEFAULT_ADDRESS}.",
    ),
]
# Before the command, the environment counts too.
FirstAddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST[:PORT]",
        envvar=ADDRESS_VARIABLE,
        help=f"The nexus, on port {DEFAULT_PORT} if none is named. Default: {DEFAULT_ADDRESS}.",
    ),
]
SvidDirOption = Annotated[
    Path | None,
    typer.Option(
        "--svid-dir", metavar="DIR", help="Use the SVID in svid.pem, svid_key.pem and bundle.pem, not SPIRE's."
    ),
]
UnnamedOption = Annotated[
    bool | None,
    typer.Option(
        "--unnamed-authorities",
        help="With --svid-dir: take authorities that name no trust domain; bundle.pem must have no other domain's.",
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0.1, max=_LONGEST_TIMEOUT_S, metavar="SECONDS", help="Limit for each call. Default: 10."
    ),
]
RoleOption = Annotated[
    str | None, typer.Option("--role", metavar="ROLE", help="Among several SVIDs, use the one with this role.")
]

GLOBALS: dict[str, Any] = {
    "output": OutputOption,
    "address": AddressOption,
    "svid_dir": SvidDirOption,
    "unnamed_authorities": UnnamedOption,
    "timeout": TimeoutOption,
    "role": RoleOption,
}


def complete_address(given: str) -> str:
    """Return HOST:PORT, with the default port for a host alone. Without a port an IPv6 address needs no brackets.

    Raises:
        UsageError: It is neither.
    """
    match = _ADDRESS.fullmatch(f"[{given}]" if _BARE_IPV6.fullmatch(given) else given)
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not 0 < port < 2**16:
        raise UsageError(f"address: got {given!r}, want HOST or HOST:PORT, such as {DEFAULT_ADDRESS}")
    return f"{match['host']}:{port}"


def with_globals(function: Callable[..., None], *, takes_toml: bool = False) -> Callable[..., None]:
    """Make a command of *function*: its first parameter becomes the `Settings`, and errors are described.

    Only with *takes_toml* has it output as TOML.
    """
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    def run(**given: Any) -> None:
        settings: Settings = given.pop("context").find_root().obj or Settings()
        changes = {name: value for name in GLOBALS if (value := given.pop(name)) is not None}
        with described():
            settings = replace(settings, **changes)
            if settings.output is Output.TOML and not takes_toml:
                raise UsageError("--output: got toml, want table or json: only policies are shown as TOML")
            function(settings, **given)

    parameters = [
        inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context),
        *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
        *(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in GLOBALS.items()
        ),
    ]
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run
