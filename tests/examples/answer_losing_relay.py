"""A relay in front of a nexus that loses the answer to a long call: what a client sees of it is a broken connection."""

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

from tests.kit.waiting import wait_until

_CHUNK: Final = 65536


class AnswerLosingRelay:
    """Passes on what comes to `address`, but for the first answer that follows *call_size* bytes from the client.

    It then holds back what the server says until *was_made*, and closes the connection. Further connections are whole.
    """

    def __init__(self, port: int, *, call_size: int, was_made: Callable[[], bool]) -> None:
        self.is_lost = threading.Event()
        self._port = port
        self._call_size = call_size
        self._was_made = was_made
        self._is_sent = threading.Event()  # the call, to the server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return  # closed
            server = socket.create_connection(("127.0.0.1", self._port))
            for work in (self._pass_calls, self._pass_answers):
                threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _pass_calls(self, client: socket.socket, server: socket.socket) -> None:
        sent = 0
        while chunk := _receive(client):
            sent += len(chunk)
            if sent > self._call_size:
                self._is_sent.set()  # before the server can answer
            if not _send(server, chunk):
                break
        _cut(client, server)

    def _pass_answers(self, client: socket.socket, server: socket.socket) -> None:
        while chunk := _receive(server):
            if self._is_sent.is_set() and not self.is_lost.is_set():
                wait_until(self._was_made, what="the call was made")
                self.is_lost.set()
                break
            if not _send(client, chunk):
                break
        _cut(client, server)


def _receive(source: socket.socket) -> bytes:
    try:
        return source.recv(_CHUNK)
    except OSError:
        return b""


def _send(target: socket.socket, chunk: bytes) -> bool:
    try:
        target.sendall(chunk)
    except OSError:
        return False
    return True


def _cut(*connections: socket.socket) -> None:
    for connection in connections:
        with contextlib.suppress(OSError):  # cut already
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()
