"""Free TCP ports on loopback, for servers that start later and must find the same ports again.

They come from below the range that the kernel uses for outgoing connections: otherwise a connection could take the port
of a server that is down, even a connection that tries to reach that very server.
"""

import random
import socket
from collections.abc import Collection

HOST = "127.0.0.1"
RANGE = range(20000, 32000)


def choose_ports(count: int, *, taken: Collection[int] = (), within: range = RANGE) -> list[int]:
    """Choose *count* different ports *within* a range that are free now and not among *taken*.

    Another program may take one before its server does: the caller must check again when a server does not start.

    Raises:
        OSError: There are not enough free ports.
    """
    chosen: list[int] = []
    for port in random.SystemRandom().sample(within, len(within)):
        if len(chosen) == count:
            return chosen
        if port not in taken and is_free(port):
            chosen.append(port)
    raise OSError(f"{len(chosen)} free ports on {HOST}, want {count}")


def is_free(port: int) -> bool:
    """Return whether a server can listen on *port* now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: an ended server's connections that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
    return True
