"""What a shell completes and only a nexus knows: policies, keepers, and paths that the caller may list.

It is fast or it is nothing: after a second, and on any failure, nothing is offered. Nothing is ever printed or asked.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import typer

from pilot.options import Settings
from pilot.plain import clean

if TYPE_CHECKING:
    from pilot.connection import Connection

_LIMIT_S = 1.0


def complete_policies(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the names of policies."""
    return _complete(context, incomplete, _find_policies, roles=("superuser", "auditor"))


def complete_keepers(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the names of keepers."""
    return _complete(context, incomplete, _find_keepers, roles=("operator", "superuser", "auditor"))


def complete_paths(context: typer.Context, incomplete: str) -> list[str]:
    """Offer the paths of secrets that begin with what is typed."""
    prefix = incomplete.rpartition("/")[0]
    return _complete(context, incomplete, lambda connection: _find_paths(connection, prefix), roles=("", "superuser"))


def _complete(
    context: typer.Context,
    incomplete: str,
    find: "Callable[[Connection], Iterable[str]]",
    *,
    roles: Sequence[str],
) -> list[str]:
    """Return what *find* finds within the limit; nothing when it fails."""
    found: list[str] = []

    def ask() -> None:
        with suppress(Exception):  # whatever it is, a shell that waits for a word is no place to say so
            from pilot.connection import Connection

            with Connection(_read_settings(context), preferred=roles) as connection:
                found.extend(find(connection))

    with _silence():
        asking = threading.Thread(target=ask, name="completion", daemon=True)
        asking.start()
        asking.join(_LIMIT_S)
    return [name for name in tuple(found) if name.startswith(incomplete) and clean(name) == name]


@contextmanager
def _silence() -> Iterator[None]:
    """Let nobody log into the line that is being typed."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _read_settings(context: typer.Context) -> Settings:
    """Return the global options that are typed so far, those after the command before those before it."""
    given: dict[str, Any] = {}
    for parameters in (context.find_root().params, context.params):
        given |= {one.name: parameters[one.name] for one in fields(Settings) if parameters.get(one.name) is not None}
    return Settings(**{**given, "timeout": _LIMIT_S})


def _find_policies(connection: "Connection") -> Iterator[str]:
    from shardhold.v1 import policies_pb2 as pb

    request = pb.ListPoliciesRequest()
    while True:
        response = connection.call(connection.policies.ListPolicies, request)
        yield from (policy.name for policy in response.policies)
        yield from response.damaged
        if not response.next_page_token:
            return
        request.page_token = response.next_page_token


def _find_keepers(connection: "Connection") -> list[str]:
    from shardhold.v1 import cluster_pb2 as pb

    response = connection.call(connection.cluster.ListKeepers, pb.ListKeepersRequest())
    return [keeper.status.name for keeper in response.keepers]


def _find_paths(connection: "Connection", prefix: str) -> list[str]:
    from shardhold.v1 import secrets_pb2 as pb

    response = connection.call(connection.secrets.ListSecrets, pb.ListSecretsRequest(prefix=prefix))
    return [secret.path for secret in response.secrets]
