"""Which identities a development cluster hands out, and on which socket each.

The list is a file, so that `pilot dev exec` can add a workload while the provider runs: the provider checks it several
times a second.
"""

import hashlib
import re
import socket
from pathlib import Path

import msgspec

from pilot.dev.directory import DevDirectory, DevError
from pilot.errors import USAGE

FOLDER_SOCKET = "workload.sock"  # in the folder of an identity
TRUST_DOMAIN = "dev.shardhold"
NEXUS_PATH = "/shardhold/nexus/nexus-1"
SUPERUSER_PATH = "/shardhold/pilot/role/superuser/dev"
OPERATOR_PATH = "/shardhold/pilot/role/operator/dev"
CUSTODIANS = 3  # people who have an identity from the start; `pilot dev exec` adds others
_PATH = re.compile(r"(/[A-Za-z0-9._-]{1,128}){1,16}")
_ROLE_PATH = re.compile(r"/shardhold/pilot/role/([a-z]{1,16})/([a-z0-9-]{1,16})")


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One SPIFFE ID and the socket on which its workload gets the SVID."""

    path: str  # of the SPIFFE ID, with the leading slash
    dns: str = ""  # the one DNS SAN of a server; empty: none

    @property
    def spiffe_id(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}{self.path}"

    @property
    def socket_name(self) -> str:
        """A file name of at most 40 bytes; two identities never share one."""
        if self.dns:
            return self.path.rpartition("/")[2] + ".sock"
        if role := _ROLE_PATH.fullmatch(self.path):
            return f"{role[1]}-{role[2]}.sock"
        # The hash tells /a/app from /b/app.
        return f"{self.path.rpartition('/')[2][:20]}.{hashlib.sha256(self.path.encode()).hexdigest()[:12]}.sock"

    @property
    def folder_name(self) -> str:
        """Name of the folder for a socket that is mounted on its own: nexus, keeper-1, superuser-dev, team+app."""
        if self.dns or _ROLE_PATH.fullmatch(self.path):
            return self.socket_name.removesuffix(".sock")
        return self.path[1:].replace("/", "+")  # a SPIFFE path has no '+', so two never share one


class IdentityList(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    identities: tuple[Identity, ...]


def keeper_path(name: str) -> str:
    """Return the SPIFFE-ID path of the keeper *name*."""
    return f"/shardhold/keeper/{name}"


def custodian_path(number: int) -> str:
    """Return the SPIFFE-ID path of the custodian *number*, 1, 2, 3 …"""
    return f"/shardhold/pilot/role/recover/custodian-{number}"


def list_people() -> tuple[Identity, ...]:
    """Return the people of every development cluster: a superuser, an operator and the custodians."""
    custodians = (custodian_path(number) for number in range(1, CUSTODIANS + 1))
    return tuple(Identity(path=path) for path in (SUPERUSER_PATH, OPERATOR_PATH, *custodians))


def server_identity(name: str) -> Identity:
    """Return the identity of the server that the command line calls *name*: nexus, keeper-1 …"""
    if name == "nexus":
        return Identity(path=NEXUS_PATH, dns="nexus.shardhold")
    return Identity(path=keeper_path(name), dns=f"{name}.keeper.shardhold")


def parse_workload(text: str) -> Identity:
    """Read an identity that a user gave: a path, or a whole SPIFFE ID of the development trust domain.

    Raises:
        DevError: *text* is neither, or is a server's identity.
    """
    path = text.removeprefix(f"spiffe://{TRUST_DOMAIN}")
    if not path.startswith("/") and "://" not in path:
        path = "/" + path
    if not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/")):
        raise DevError(
            f"--as: got {text!r}, want a path such as /team/app",
            hint=f"the trust domain is {TRUST_DOMAIN}",
            exit_code=USAGE,
        )
    if path.startswith(("/shardhold/nexus/", "/shardhold/keeper/")):
        raise DevError(f"--as: {path} is a server's identity, want a workload's or a person's", exit_code=USAGE)
    return Identity(path=path)


def load_identities(directory: DevDirectory) -> tuple[Identity, ...]:
    """Read the list; empty before it is first written.

    Raises:
        DevError: The file is damaged.
    """
    try:
        return msgspec.json.decode(directory.identities.read_bytes(), type=IdentityList).identities
    except FileNotFoundError:
        return ()
    except msgspec.DecodeError as exc:
        raise DevError(f"{directory.identities} is damaged: {exc}") from exc


def add_identities(directory: DevDirectory, *wanted: Identity) -> None:
    """Put identities on the list, each once. The caller holds the directory's lock."""
    known = {identity.path: identity for identity in load_identities(directory)}
    if all(known.get(identity.path) == identity for identity in wanted):
        return
    known |= {identity.path: identity for identity in wanted}
    encoded = msgspec.json.encode(IdentityList(identities=tuple(known.values())))
    directory.replace_file(directory.identities, msgspec.json.format(encoded, indent=2))


def is_answering(path: Path) -> bool:
    """Return whether a server listens on the unix socket *path*."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True
