"""Single keeper processes for tests: started with an identity provider of their own, called as anybody."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from pilot.dev.ca import DevelopmentCA
from pilot.dev.provider import IdentityProvider
from shardhold._identity import Svid

WAIT_S = 20.0  # seconds; far more than anything takes, so that a busy machine fails no test
NEXUS_PATH = "/shardhold/nexus/n1"


class FixedIdentity:
    """An identity source with one SVID, which a test may replace."""

    def __init__(self, svid: Svid) -> None:
        self.svid = svid

    def current(self) -> Svid:
        return self.svid

    def subscribe(self, callback: Callable[[], None]) -> None:
        """Never called: calls ask `current`."""

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True)
class Credentials:
    """A certificate with its key, in whatever shape, and the authorities that its owner trusts; PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    roots: bytes


def certify(
    ca: DevelopmentCA,
    *,
    uris: Sequence[str] = (),
    dns: Sequence[str] = (),
    roots: DevelopmentCA | None = None,
    valid: tuple[timedelta, timedelta] = (timedelta(minutes=-1), timedelta(hours=1)),
) -> Credentials:
    """Issue a leaf with exactly these names, valid from and until these distances from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    leaf = ca.certify(key.public_key(), uris=uris, dns=dns, not_before=now + valid[0], not_after=now + valid[1])
    return Credentials(
        certificate=leaf.public_bytes(Encoding.PEM),
        key=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        roots=(roots or ca).bundle_pem,
    )


def connect(port: int, credentials: Credentials | None, ca: DevelopmentCA, *, server_name: str) -> grpc.Channel:
    """Open a plain gRPC channel to 127.0.0.1; without credentials it shows no certificate."""
    secrets = (
        grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate)
        if credentials
        else grpc.ssl_channel_credentials(ca.bundle_pem)
    )
    options = [("grpc.ssl_target_name_override", server_name), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{port}", secrets, options=options)


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its code, the message and reason of an error, the bytes of an answer."""

    code: grpc.StatusCode
    details: str = ""
    reason: str = ""
    answer: bytes = b""


def call(channel: grpc.Channel, method: str, body: bytes = b"", *, timeout: float = 10.0) -> Outcome:
    """Call *method*, with its full name, by bytes."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        return Outcome(grpc.StatusCode.OK, answer=unary(body, timeout=timeout))
    except grpc.RpcError as exc:
        return Outcome(exc.code(), exc.details() or "", read_reason(exc))


def read_reason(error: grpc.RpcError) -> str:
    """Return the reason of our ErrorInfo; empty if there is none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "shardhold":
            return str(info.reason)
    return ""


def wait_until(condition: Callable[[], Any], *, what: str, seconds: float = WAIT_S) -> Any:
    """Return the first true value of *condition*; fail when there is none in time."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        pause.wait(0.01)
    return value


class KeeperProcess:
    """One `keeper` in a process of its own. Its SVID comes from *provider*; port 0 takes free ones."""

    def __init__(
        self, directory: Path, provider: IdentityProvider, *, name: str = "k1", port: int = 0, extra: str = ""
    ) -> None:
        self.name = name
        self.spiffe_path = f"/shardhold/keeper/{name}"
        self.server_name = f"{name}.keeper.shardhold"
        self.spiffe_id = f"spiffe://{provider.trust_domain}{self.spiffe_path}"
        self.directory = directory
        self._provider = provider
        self._extra = extra
        self._asked_port = port
        self.config = directory / f"{name}.toml"
        self.log = directory / f"{name}.log"
        self.work = directory / f"{name}.work"  # where it runs, and where nothing may appear

    def start(self, environ: Mapping[str, str] | None = None) -> "KeeperProcess":
        """Start it and return when it serves."""
        self.spawn(environ)
        line = wait_until(lambda: self._failed() or self.find_log("keeper serves"), what=f"start of {self.name}")
        assert isinstance(line, dict), line
        self.port, self.http_port = int(line["port"]), int(line["http_port"])
        return self

    def spawn(self, environ: Mapping[str, str] | None = None) -> None:
        """Start it without waiting."""
        socket = self._provider.add(self.spiffe_path, self.server_name)
        self.config.write_text(
            f'name = "{self.name}"\n'
            f'nexuses = ["spiffe://{self._provider.trust_domain}{NEXUS_PATH}"]\n'
            "dev = true\n"
            f'[identity]\ntrust_domain = "{self._provider.trust_domain}"\nsocket = "unix://{socket}"\n'
            f'[listen]\naddress = "127.0.0.1:{self._asked_port}"\nhttp = "127.0.0.1:0"\n'
            '[memory]\nlowest_level = 1\n[log]\nformat = "json"\n' + self._extra
        )
        self.work.mkdir(exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "keeper", "--config", str(self.config)],
                cwd=self.work,
                env={"PATH": os.environ["PATH"], **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(WAIT_S)

    def find_log(self, event: str) -> dict[str, Any] | None:
        """Return the first log line with this event."""
        for text in self.log.read_text().splitlines():
            if text.startswith("{"):
                line: dict[str, Any] = json.loads(text)
                if line["event"] == event:
                    return line
        return None

    def _failed(self) -> str:
        code = self.process.poll()
        return "" if code is None else f"{self.name} ended with {code}: {self.log.read_text()}"
