"""`nexus restore`: make the store of this nexus from a backup, while no nexus runs.

1. Whose backup it is is said by whoever restores: the genesis fingerprint on the share cards. A backup of another
   cluster, and one that no nexus of this cluster signed, is refused.
2. Nothing is at the place of the store before the whole backup was read, its digests fit and its signature verifies.
3. The root key is not in a backup. Keepers or custodians give it back afterwards, and it proves the control rows; then
   a superuser accepts the store, which begins a new timeline with a new root key.
4. The identity that opens the backup is in this process's memory, which ends with it.
"""

import getpass
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.errors import BackupError, ConfigError, StoreUnavailableError
from common.forms.backup.header import Header, check_signature
from common.keys import age
from common.keys.identity_file import load_identity
from nexus.config import NexusConfig
from nexus.store.sqlite.restored import StorePlace, store_place

_FINGERPRINT_SIZE = 32  # bytes
_LATEST = 253_402_300_799  # seconds since 1970 at the end of the year 9999


@dataclass(frozen=True, slots=True)
class Order:
    """What is restored."""

    backup: Path
    identity: Path
    genesis: bytes  # fingerprint, 32 bytes
    replaces: bool = False  # the store that is there


def restore(config: NexusConfig, order: Order) -> str:
    """Make the store, and say in words what it is.

    Raises:
        WrongStateError, CorruptRowError: There is a store, whole or not, and it is not to be replaced.
        BackupError: The backup is damaged, or of somebody else; nothing has changed.
        BackupUnavailableError, StoreUnavailableError: A file cannot be read or written; nothing has changed.
    """
    folder = Path(config.storage.path).resolve().parent
    if folder.is_dir():
        check_owner(folder, owner=folder.stat().st_uid, user=os.geteuid())
    identity = load_identity(order.identity, _ask)
    with store_place(Path(config.storage.path), replaces=order.replaces) as place:
        with place.begin() as store:
            contents = age.read_rows(order.backup, identity, store.take)
            check_signature(contents, genesis=order.genesis)
        return describe(contents.header, place)


def find_genesis(config: NexusConfig, given: str) -> bytes:
    """Return the fingerprint that a backup has to begin with: as *given*, or as configured.

    Raises:
        ConfigError: It is neither given nor configured, or they differ.
    """
    text = "".join(given.split()).lower() or config.genesis
    try:
        fingerprint = bytes.fromhex(text)
    except ValueError:
        fingerprint = b""
    if len(fingerprint) != _FINGERPRINT_SIZE:
        what = f"got {given[:100]!r}" if given else "got none"
        raise ConfigError(f"--genesis: {what}, want the 64 hex digits on the share cards: whose backup it is")
    if config.genesis and text != config.genesis:
        raise ConfigError("--genesis: is another one than genesis in the configuration")
    return fingerprint


def _ask(prompt: str) -> str:
    if not sys.stdin.isatty():
        raise BackupError("a passphrase protects the identity file, and there is no terminal to ask for it")
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise BackupError("no passphrase was given") from None


def check_owner(folder: Path, *, owner: int, user: int) -> None:
    """Check that a store that *user* makes in a *folder* of *owner* is one that *owner* can open.

    Raises:
        StoreUnavailableError: Root would leave one that the nexus cannot open.
    """
    if user == 0 and owner != 0:
        raise StoreUnavailableError(
            f"store: folder {folder} belongs to user {owner}, who could not open what root makes there: "
            "restore as that user"
        )


def describe(header: Header, place: StorePlace) -> str:
    """Say what was restored, what it replaced, and what has to come."""
    made_at = datetime.fromtimestamp(min(header.created_at // 1_000_000, _LATEST), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lines = [
        f"restored  timeline {header.timeline}, revision {header.revision}, generation {header.generation}, "
        f"as of {made_at}",
        f"store     {place.path}",
    ]
    if place.kept is not None:
        present = place.present
        what = f"timeline {present.timeline}, revision {present.revision}" if present else "what is no whole store"
        lines.append(f"replaced  {what}: kept beside it as {place.kept.name}")
    lines.append("next      start the nexus; keepers or 'pilot unseal' give the key back; 'pilot accept-older-store'")
    return "\n".join(lines)
