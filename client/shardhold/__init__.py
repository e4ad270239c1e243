"""The Shardhold SDK: secrets for services, by their SPIFFE identity.

    from shardhold import Client

    with Client() as client:
        client.put("team/app/db", {"password": "correct horse"})
        password = client.get("team/app/db").text("password")

`AsyncClient` is the same for asyncio, with `async with`, `await` and `async for`. The values of fields are bytes, which
`text` decodes. `Cached` and `AsyncCached` serve a secret from memory and keep it fresh. `shardhold.testing` has fakes
of both clients for unit tests.

Names are loaded on first use, so a program pays only for what it needs.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shardhold._aio_cached import AsyncCached
    from shardhold._aio_client import AsyncClient
    from shardhold._cached import Cached
    from shardhold._client import Client
    from shardhold._errors import (
        ClientClosedError,
        ConflictError,
        DeadlineError,
        DeniedError,
        Error,
        IdentityUnavailableError,
        IntegrityError,
        InternalError,
        InvalidArgumentError,
        NoSuchFieldError,
        NotFoundError,
        NotTextError,
        OverloadedError,
        RecoveringError,
        SealedError,
        UnauthenticatedError,
        UnavailableError,
        UnsupportedError,
        WrongStateError,
    )
    from shardhold._results import (
        Deleted,
        Destroyed,
        Entry,
        Secret,
        State,
        Status,
        Undeleted,
        Updated,
        Version,
        VersionState,
        Written,
    )
    from shardhold.identity import IdentitySource, Svid, SvidFiles, WorkloadAPI

__all__ = [
    "Client",
    "AsyncClient",
    "Cached",
    "AsyncCached",
    "Secret",
    "Written",
    "Deleted",
    "Undeleted",
    "Destroyed",
    "Updated",
    "Entry",
    "Version",
    "VersionState",
    "Status",
    "State",
    "IdentitySource",
    "WorkloadAPI",
    "SvidFiles",
    "Svid",
    "Error",
    "UnavailableError",
    "SealedError",
    "RecoveringError",
    "OverloadedError",
    "DeadlineError",
    "ClientClosedError",
    "IdentityUnavailableError",
    "UnauthenticatedError",
    "DeniedError",
    "NotFoundError",
    "ConflictError",
    "InvalidArgumentError",
    "WrongStateError",
    "UnsupportedError",
    "IntegrityError",
    "InternalError",
    "NoSuchFieldError",
    "NotTextError",
]

_RESULTS = (
    "Secret",
    "Written",
    "Deleted",
    "Undeleted",
    "Destroyed",
    "Updated",
    "Entry",
    "Version",
    "VersionState",
    "Status",
    "State",
)

# The modules of all names that are not errors.
_MODULES = {
    "Client": "_client",
    "AsyncClient": "_aio_client",
    "Cached": "_cached",
    "AsyncCached": "_aio_cached",
    **dict.fromkeys(_RESULTS, "_results"),
    **dict.fromkeys(("IdentitySource", "WorkloadAPI", "SvidFiles", "Svid"), "identity"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, '_errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
