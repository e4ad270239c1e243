"""Single keeper processes: started with an identity provider of their own, and asked as their nexus asks."""

import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc

from common.forms.delivery import PUT_FORMAT, SetLabel, build_put_info
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.keys import shamir
from common.keys.sealing import seal
from common.keys.statement import NONCE_SIZE, PUT_SHARD, Statement
from keeper.v1 import keeper_pb2 as pb
from pilot.dev.provider import IdentityProvider
from pilot.dev.spawn import Spawn, exec_program
from tests.kit.patience import at_most, join
from tests.kit.raw_calls import call
from tests.kit.refusal import Outcome
from tests.kit.waiting import WAIT_S, wait_until

NEXUS_PATH = "/shardhold/nexus/n1"
CLUSTER_ID = b"c" * 16


def make_put(
    statement: Statement,
    *,
    cluster_id: bytes = CLUSTER_ID,
    genesis: bytes = b"g" * 32,
    timeline: int = 1,
    number: int = 7,
    x: int = 3,
    seed: bytes = b"",
    current_number: int | None = 0,
    epoch: StoreEpoch = NO_EPOCH,
    put_format: int = PUT_FORMAT,
) -> pb.PutShardRequest:
    """Seal a shard of set *number* for *statement*, all of it right.

    The current set is *current_number*; 0: it is this one; None: the keeper is no member of it.
    """
    label = SetLabel(
        cluster_id=cluster_id,
        genesis=genesis,
        timeline=timeline,
        generation=1,
        set_id=number.to_bytes(16, "big"),
        set_number=number,
    )
    current_set_id = b"" if current_number is None else (current_number or number).to_bytes(16, "big")
    shard = bytearray(hashlib.sha256(label.set_id + seed).digest() + bytes((x,)))
    commitment = shamir.commitment(memoryview(shard), cluster_id=cluster_id, set_id=label.set_id)
    info = build_put_info(
        label,
        statement_digest=statement.digest(),
        x=x,
        commitment=commitment,
        current_set_id=current_set_id,
        epoch=epoch,
        put_format=put_format,
    )
    return pb.PutShardRequest(
        label=pb.SetLabel(**asdict(label)),
        x=x,
        statement_digest=statement.digest(),
        sealed_shard=seal(memoryview(shard), recipient=statement.public_key, info=info),
        commitment=commitment,
        current_set_id=current_set_id,
        epoch=pb.StoreEpoch(**epoch._asdict()) if epoch.epoch else None,
        format=put_format,
    )


def name_rpc(rpc: str) -> str:
    """Return the full name of an RPC of a keeper."""
    return f"/keeper.v1.KeeperService/{rpc}"


def fetch_status(channel: grpc.Channel) -> pb.GetStatusResponse:
    """Ask a keeper, as its nexus, what it holds."""
    outcome = call(channel, name_rpc("GetStatus"))
    assert outcome.code is grpc.StatusCode.OK, outcome
    return pb.GetStatusResponse.FromString(outcome.answer)


def ask_statement(channel: grpc.Channel, *, cluster_id: bytes = CLUSTER_ID) -> Statement:
    """Ask a keeper, as its nexus, for a one-shot key."""
    request = pb.GetSealingKeyRequest(cluster_id=cluster_id, purpose=PUT_SHARD, nonce=os.urandom(NONCE_SIZE))
    outcome = call(channel, name_rpc("GetSealingKey"), request.SerializeToString())
    assert outcome.code is grpc.StatusCode.OK, outcome
    return Statement.decode(pb.GetSealingKeyResponse.FromString(outcome.answer).statement)


def put_shard(channel: grpc.Channel, request: pb.PutShardRequest) -> Outcome:
    """Give a keeper what `make_put` made."""
    return call(channel, name_rpc("PutShard"), request.SerializeToString())


class KeeperProcess:
    """One `keeper` in a process of its own. Its SVID comes from *provider*; port 0 takes free ones."""

    def __init__(
        self,
        directory: Path,
        provider: IdentityProvider,
        *,
        name: str = "k1",
        port: int = 0,
        extra: str = "",
        socket: Path | None = None,
        nexuses: Sequence[str] = (NEXUS_PATH,),
        spawn: Spawn = exec_program,
    ) -> None:
        self.name = name
        self.spiffe_path = f"/shardhold/keeper/{name}"
        self.server_name = f"{name}.keeper.shardhold"
        self.spiffe_id = f"spiffe://{provider.trust_domain}{self.spiffe_path}"
        self.directory = directory
        self._provider = provider
        self._extra = extra
        self._asked_port = port
        self._socket = socket
        self._spawn = spawn
        self._nexuses = [f"spiffe://{provider.trust_domain}{path}" for path in nexuses]
        self.config = directory / f"{name}.toml"
        self.work = directory / f"{name}.work"  # where it runs, its home and its TMPDIR: nothing may appear there
        self.log: list[str] = []

    def start(self, environ: Mapping[str, str] | None = None) -> "KeeperProcess":
        """Start it and return when it serves."""
        self.spawn(environ)
        self.wait_serving()
        return self

    def wait_serving(self) -> None:
        """Return when it serves, with its ports known."""
        line = wait_until(lambda: self._failed() or self.find_log("keeper serves"), what=f"start of {self.name}")
        assert isinstance(line, dict), line
        self.port, self.http_port = int(line["port"]), int(line["http_port"])

    def spawn(self, environ: Mapping[str, str] | None = None) -> None:
        """Start it without waiting."""
        socket = self._socket or self._provider.add(self.spiffe_path, self.server_name)
        self.config.write_text(
            f'name = "{self.name}"\n'
            f"nexuses = {json.dumps(self._nexuses)}\n"
            "dev = true\n"
            f'[identity]\ntrust_domain = "{self._provider.trust_domain}"\nsocket = "unix://{socket}"\n'
            f'[listen]\naddress = "127.0.0.1:{self._asked_port}"\nhttp = "127.0.0.1:0"\n'
            '[memory]\nlowest_level = 1\n[log]\nformat = "json"\n' + self._extra
        )
        self.work.mkdir(exist_ok=True)
        self.log.clear()
        work = str(self.work)
        reading, writing = os.pipe()
        with Path(os.devnull).open("rb") as nothing, os.fdopen(writing, "wb") as output:
            self.process = self._spawn(
                [sys.executable, "-P", "-m", "keeper", "--config", str(self.config)],
                environ={"PATH": os.environ["PATH"], "HOME": work, "TMPDIR": work, **(environ or {})},
                directory=self.work,
                stdin=nothing.fileno(),
                stdout=output.fileno(),
                stderr=output.fileno(),
            )
        self._reader = threading.Thread(target=self._read_log, args=[reading], daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit code, once it has ended and its last words are read."""
        code = self.process.wait(at_most(WAIT_S))
        join(self._reader, WAIT_S)
        return code

    def close(self) -> None:
        """End it whatever it does."""
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def find_log(self, event: str) -> dict[str, Any] | None:
        """Return the first log line with this event."""
        for text in list(self.log):
            if text.startswith("{"):
                line: dict[str, Any] = json.loads(text)
                if line["event"] == event:
                    return line
        return None

    def _failed(self) -> str:
        if self.process.poll() is None:
            return ""
        return f"{self.name} ended with {self.wait()}: {self.log}"

    def _read_log(self, fd: int) -> None:
        with os.fdopen(fd) as lines:
            self.log.extend(iter(lines.readline, ""))
