"""What tests ask of a vault, as APP, about one secret and its versions."""

import os
from collections.abc import Mapping, Sequence

from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import MadeByRequest
from nexus.vault.expected import Expected
from tests.nexus.core import APP, NexusCore

ANY = Expected()
PATH = "team/app/db"
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)


def put(nexus: NexusCore, count: int = 1, *, path: str = PATH) -> MadeByRequest:
    """Put *count* versions, each with its number as the value."""
    for _ in range(count):
        with nexus.store.read() as reader:
            secret = reader.load_secret(path)
        value = b"v%d" % (secret.current_version + 1 if secret else 1)
        made = nexus.vault.put(APP, path, {"value": value}, ANY, os.urandom(16))
    return made


def patch(
    nexus: NexusCore, fields: Mapping[str, bytes], removed: Sequence[str] = (), expected: Expected = ANY
) -> MadeByRequest:
    return nexus.vault.patch(APP, PATH, fields, removed, expected, os.urandom(16))


def delete(nexus: NexusCore, *versions: int) -> MadeByRequest:
    return nexus.vault.delete(APP, PATH, versions, ANY, os.urandom(16))


def undelete(nexus: NexusCore, *versions: int) -> MadeByRequest:
    return nexus.vault.undelete(APP, PATH, versions, os.urandom(16))


def destroy(nexus: NexusCore, *versions: int, expected: Expected = ANY) -> MadeByRequest:
    return nexus.vault.destroy(APP, PATH, versions, expected, os.urandom(16))


def keep(nexus: NexusCore, max_versions: int | None) -> MadeByRequest:
    return nexus.vault.update_metadata(APP, PATH, max_versions, os.urandom(16))


def get(nexus: NexusCore, version: int = 0) -> Mapping[str, bytes]:
    return nexus.vault.get(APP, PATH, version).fields


def list_states(nexus: NexusCore) -> str:
    """List the states of all versions by their first letters, the oldest first; x: destroyed."""
    letters = {"live": "l", "deleted": "d", "destroyed": "x"}
    page = nexus.vault.list_versions(APP, PATH)
    return "".join(letters[row.state] for row in reversed(page.versions))
