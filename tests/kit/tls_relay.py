"""A relay in front of a TLS server that reads which key-exchange group both ends agreed on: it is sent in clear.

grpcio tells it to nobody. The server names the group in the extension key_share of its ServerHello, also when that is a
HelloRetryRequest (RFC 8446, sections 4.1.3 and 4.2.8).
"""

import contextlib
import socket
import struct
import threading
from typing import Final

HYBRID: Final = "X25519MLKEM768"
P256: Final = "P-256"
# The registry "TLS Supported Groups" of IANA.
GROUPS: Final = {0x0017: P256, 0x0018: "P-384", 0x001D: "X25519", 0x11EC: HYBRID}

_HANDSHAKE, _SERVER_HELLO, _KEY_SHARE = 22, 2, 51
_RECORD = struct.Struct(">BHH")  # type, version, length
_BEFORE_SESSION = 4 + 2 + 32  # type and length of the message, version, random


class TlsRelay:
    """Passes on what comes to `address` to the server at *port* on loopback, unchanged, and notes the groups."""

    def __init__(self, port: int) -> None:
        self.groups: list[str] = []  # of each connection whose server has answered
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no more connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> "TlsRelay":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._port))
                except OSError:  # nobody listens yet
                    near.close()
                    continue
                threading.Thread(target=self._carry, args=(near, far), daemon=True).start()
                threading.Thread(target=self._answer, args=(far, near), daemon=True).start()

    def _answer(self, far: socket.socket, near: socket.socket) -> None:
        """Carry from the server, and note the group of its first record."""
        seen = b""
        with contextlib.suppress(OSError):
            while (hello := find_server_hello(seen)) is None:
                if not (part := far.recv(65536)):
                    break
                seen += part
            if hello:
                self.groups.append(read_group(hello))
            near.sendall(seen)
        self._carry(far, near)

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        with one, contextlib.suppress(OSError):  # cut off
            while part := one.recv(65536):
                other.sendall(part)
            other.shutdown(socket.SHUT_WR)


def find_server_hello(stream: bytes) -> bytes | None:
    """Return the first record that a server sent, None while it is not there as a whole, empty if it is no hello."""
    if len(stream) < _RECORD.size:
        return None
    kind, _, length = _RECORD.unpack_from(stream)
    if kind != _HANDSHAKE:
        return b""
    record = stream[_RECORD.size : _RECORD.size + length]
    if len(record) < length:
        return None
    return record if record[0] == _SERVER_HELLO else b""


def read_group(hello: bytes) -> str:
    """Return the group that a ServerHello names; empty if it names none, as before TLS 1.3."""
    at = _BEFORE_SESSION
    at += 1 + hello[at] + 2 + 1  # session id, cipher suite, compression
    end = at + 2 + int.from_bytes(hello[at : at + 2])
    at += 2
    while at < end:
        kind, length = struct.unpack_from(">HH", hello, at)
        if kind == _KEY_SHARE:
            group = int.from_bytes(hello[at + 4 : at + 6])
            return GROUPS.get(group, f"0x{group:04x}")
        at += 4 + length
    return ""
