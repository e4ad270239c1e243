"""Waiting for servers: polling with a deadline."""

import http.client
import threading
import time
from collections.abc import Callable

from pilot.dev.ports import HOST

INTERVAL_S = 0.02


def wait_until(condition: Callable[[], bool], *, timeout: float) -> bool:
    """Wait until *condition* holds; return False if it does not within *timeout* seconds."""
    pause = threading.Event()
    give_up = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > give_up:
            return False
        pause.wait(INTERVAL_S)
    return True


def says_yes(port: int, path: str) -> bool:
    """Return whether the HTTP server at *port* on loopback answers GET *path* with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
