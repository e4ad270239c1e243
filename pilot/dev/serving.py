"""Runs the identity provider for the identities of a directory, and picks up those that are added meanwhile."""

import fcntl
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from pilot.dev.ca import DevelopmentCA
from pilot.dev.directory import DevDirectory, DevError
from pilot.dev.identities import FOLDER_SOCKET, TRUST_DOMAIN, Identity, load_identities
from pilot.dev.provider import IdentityProvider

LOOK_INTERVAL_S = 0.1


def serve_identities(
    directory: DevDirectory,
    *,
    lifetime: timedelta,
    stop: threading.Event,
    announce: Callable[[str], None],
    folders: Path | None = None,
) -> None:
    """Hand out SVIDs until *stop* is set; each start makes a new authority.

    With *folders* each socket is in a folder of its own there: FOLDERS/NAME/workload.sock.

    Raises:
        DevError: Another provider serves this directory, or its list of identities is damaged.
        ConfigError: The lifetime or the sockets' folder is not usable.
    """
    with (directory.root / ".identity-lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise DevError(f"another identity provider serves {directory.root}") from exc
        sockets = folders or directory.find_sockets()
        with IdentityProvider(sockets, DevelopmentCA(TRUST_DOMAIN), lifetime=lifetime) as provider:
            seen: tuple[int, int] | None = None
            served: set[Identity] = set()
            while not stop.wait(LOOK_INTERVAL_S if served else 0):
                found = directory.identities.stat()
                if seen == (found.st_mtime_ns, found.st_ino):  # the file is always replaced, never modified
                    continue
                seen = (found.st_mtime_ns, found.st_ino)
                for identity in load_identities(directory):
                    if identity not in served:
                        served.add(identity)
                        name, folder = identity.socket_name, None
                        if folders is not None:
                            name, folder = FOLDER_SOCKET, identity.folder_name
                        socket = provider.add(identity.path, identity.dns or None, name=name, folder=folder)
                        announce(f"{identity.spiffe_id}  unix:{socket}")
