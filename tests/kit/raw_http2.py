"""HTTP/2 by hand, for what no gRPC client does: windows of zero, headers without end, silence.

One connection over mTLS, and just enough of RFC 9113 and RFC 7541 to open gRPC calls on it. Headers go as literals
without indexing, so no table is needed on this side.
"""

import socket
import ssl
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kit.credentials import Credentials
from tests.kit.patience import at_most

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
LARGEST_FRAME = 16_384  # bytes, before settings say otherwise


@dataclass(frozen=True, slots=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes


class RawConnection:
    """One connection whose streams have a window of *window* bytes. Settings of the server are acknowledged, or not."""

    def __init__(self, tls: ssl.SSLSocket, authority: str, *, window: int, acknowledges: bool) -> None:
        self._tls = tls
        self._acknowledges = acknowledges
        self._authority = authority
        self._next_stream = 1
        tls.sendall(PREFACE)
        self.send(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))

    def send(self, kind: int, flags: int, stream: int, payload: bytes = b"") -> None:
        """Send one frame."""
        head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream)
        self._tls.sendall(head + payload)

    def call(self, method: str, body: bytes = b"", *, metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Open a call with one message, and return the number of its stream."""
        stream, self._next_stream = self._next_stream, self._next_stream + 2
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", method),
            (":authority", self._authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        ]
        block = b"".join(map(_encode_header, headers))
        first, *others = (block[at : at + LARGEST_FRAME] for at in range(0, len(block), LARGEST_FRAME))
        self.send(HEADERS, 0 if others else END_HEADERS, stream, first)
        for number, part in enumerate(others, start=1):
            self.send(CONTINUATION, END_HEADERS if number == len(others) else 0, stream, part)
        self.send(DATA, END_STREAM, stream, b"\0" + struct.pack(">I", len(body)) + body)
        return stream

    def receive(self) -> Frame | None:
        """Return the next frame; None when the server has closed the connection."""
        head = self._read(9)
        if head is None:
            return None
        size, (kind, flags), (stream,) = int.from_bytes(head[:3]), head[3:5], struct.unpack(">I", head[5:9])
        payload = self._read(size) if size else b""
        if payload is None:
            return None
        if kind == SETTINGS and not flags & ACK and self._acknowledges:
            self.send(SETTINGS, ACK, 0)
        elif kind == PING and not flags & ACK:
            self.send(PING, ACK, 0, payload)
        return Frame(kind, flags, stream, payload)

    def receive_until(self, kind: int, stream: int) -> Frame | None:
        """Skip frames until one of this kind on this stream; None when the connection is closed before."""
        while (frame := self.receive()) is not None:
            if (frame.kind, frame.stream) == (kind, stream):
                return frame
        return None

    def _read(self, size: int) -> bytes | None:
        data = b""
        while len(data) < size:
            try:
                part = self._tls.recv(size - len(data))
            except ConnectionError:
                return None
            if not part:
                return None
            data += part
        return data


@contextmanager
def raw_connection(
    port: int, credentials: Credentials, *, server_name: str, window: int = 65_535, acknowledges: bool = True
) -> Iterator[RawConnection]:
    """Connect to 127.0.0.1 as somebody; the connection ends with the block."""
    with tls_connection(port, credentials, server_name=server_name) as tls:
        yield RawConnection(tls, server_name, window=window, acknowledges=acknowledges)


@contextmanager
def tls_connection(
    port: int, credentials: Credentials, *, server_name: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> Iterator[ssl.SSLSocket]:
    """Shake hands by this version of TLS alone.

    Raises:
        ssl.SSLError: One of both refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = context.maximum_version = version
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # SPIRE's authorities have no key identifiers
        context.set_alpn_protocols(["h2"])
        context.load_verify_locations(cadata=credentials.roots.decode())
        chain, key = Path(folder) / "svid.pem", Path(folder) / "key.pem"
        chain.write_bytes(credentials.certificate)
        key.write_bytes(credentials.key)
        context.load_cert_chain(chain, key)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=at_most(20)) as plain,
        context.wrap_socket(plain, server_hostname=server_name) as tls,
    ):
        yield tls


def _encode_header(header: tuple[str, str]) -> bytes:
    name, value = (part.encode() for part in header)
    return b"\0" + _encode_length(len(name)) + name + _encode_length(len(value)) + value


def _encode_length(length: int) -> bytes:
    """Return an integer with a 7-bit prefix (RFC 7541 §5.1)."""
    if length < 127:
        return bytes((length,))
    encoded, rest = bytearray(b"\x7f"), length - 127
    while rest >= 128:
        encoded.append(rest % 128 + 128)
        rest //= 128
    return bytes((*encoded, rest))
