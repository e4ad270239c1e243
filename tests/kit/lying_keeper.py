"""A keeper that lies: the real keeper's parts, put together so that one of them does not do what it should.

    flip       gives back its shard with one bit flipped
    foreign    gives back random bytes at its own x, as a shard of another set
    slow       answers every call 5 s late
    half-open  accepts connections and never says a word
    future-mark   gives back its rollback mark with a later revision, which nobody signed
    foreign-mark  gives back a rollback mark of another cluster, rightly signed there
    hoard      says that it holds older sets as well, more than a keeper can hold
    undropped  says that it holds one older set as well, however often it drops it
    broken-mark   gives back its rollback mark with one bit of the signature flipped

It takes shards like a true one: their commitments are checked, and what it gives back is sealed as it should be. It
lies about the shard itself, so that nothing but the commitment in the nexus's store can find it out; about the mark,
once it was given one; or about what it holds.
"""

import argparse
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Gauge

from common.clock import SystemClock
from common.config.config import split_address
from common.forms.codec import fields, parse_fields, u64
from common.keys.protected import Level, ProtectedMemory
from common.keys.statement import StatementDesk
from common.server import logs
from common.server.edge import Call, GrpcServer, Method
from common.server.http import HttpServer
from common.server.identity import wait_for_identity
from common.server.termination import Termination
from keeper.config import KeeperConfig, load_config
from keeper.service import KeeperService
from keeper.slots import HeldSet, ShardSlots
from keeper.v1 import keeper_pb2 as pb
from tests.kit.marks import MarkMaker

DELAY_S = 5.0  # more than a nexus waits for one call


class FlippingSlots(ShardSlots):
    """Gives back what it holds with one bit flipped."""

    def copy_shard(self, cluster_id: bytes, set_id: bytes, *, into: memoryview) -> HeldSet:
        held = super().copy_shard(cluster_id, set_id, into=into)
        into[7] ^= 0x10
        return held


class ForeignSlots(ShardSlots):
    """Gives back another shard at the same x."""

    def copy_shard(self, cluster_id: bytes, set_id: bytes, *, into: memoryview) -> HeldSet:
        held = super().copy_shard(cluster_id, set_id, into=into)
        into[:-1] = os.urandom(len(into) - 1)
        return held


class HoardingSlots(ShardSlots):
    """Says that it holds `OLDER` older sets beside what it holds."""

    OLDER = 15

    def list_held(self) -> tuple[HeldSet, ...]:
        held = super().list_held()
        older = [
            replace(one, label=replace(one.label, set_id=bytes([number]) * 16, set_number=0))
            for one in held[-1:]
            for number in range(self.OLDER)
        ]
        return (*older, *held)

    def drop(self, cluster_id: bytes, set_id: bytes) -> bool:
        return super().drop(cluster_id, set_id) or True


class UndroppedSlots(HoardingSlots):
    """The same with one older set, which a true keeper could hold."""

    OLDER = 1


def forge_future(mark: pb.RollbackMark) -> None:
    """Make it a mark of a store that has come much further."""
    parts = parse_fields(mark.mark)
    parts[3] = u64(int.from_bytes(parts[3], "big") + 1_000)
    mark.mark = fields(*parts)


def make_foreign(mark: pb.RollbackMark) -> None:
    """Make it one that the audit key of another cluster signed, for this cluster's id."""
    cluster_id = parse_fields(mark.mark)[1]
    signed = MarkMaker(cluster_id=cluster_id).make(timeline=9, revision=1_000_000)
    mark.mark, mark.signature, mark.chain[:] = signed.mark, signed.signature, signed.chain


def break_signature(mark: pb.RollbackMark) -> None:
    """Flip one bit of its signature."""
    mark.signature = bytes([mark.signature[0] ^ 1]) + mark.signature[1:]


SLOT_LIES = {"flip": FlippingSlots, "foreign": ForeignSlots, "hoard": HoardingSlots, "undropped": UndroppedSlots}
MARK_LIES = {"future-mark": forge_future, "foreign-mark": make_foreign, "broken-mark": break_signature}
LIES = (*SLOT_LIES, *MARK_LIES, "slow", "half-open")


def spoil_mark(method: Method, change: Callable[[pb.RollbackMark], None]) -> Method:
    """Return the method; when it is GetMark, the mark that it gives back is changed."""

    def answer(call: Call, request: Any) -> Any:
        response = method.handle(call, request)
        if isinstance(response, pb.GetMarkResponse):
            change(response.mark)
        return response

    return replace(method, handle=answer)


def delay(method: Method) -> Method:
    """Return the method, later."""

    def answer(call: Call, request: Any) -> Any:
        threading.Event().wait(DELAY_S)
        return method.handle(call, request)

    return replace(method, handle=answer)


def run(
    config: KeeperConfig, termination: Termination, slots_type: type[ShardSlots], change: Callable[[Method], Method]
) -> None:
    """Serve like `keeper.process`, with other slots or changed methods, until told to stop."""
    memory = ProtectedMemory(highest=Level(config.memory.highest_level), lowest=Level(config.memory.lowest_level))
    identity = wait_for_identity(config.identity, termination)
    slots = slots_type(memory)
    service = KeeperService(
        slots,
        desk=StatementDesk(SystemClock()),
        memory=memory,
        identity=identity,
        boot_id=os.urandom(16),
        nexuses=config.nexuses,
    )
    registry = CollectorRegistry()
    sets = Gauge("shardhold_keeper_sets", "Shard sets held, 0 to 2", registry=registry)
    sets.set_function(lambda: len(slots.list_held()))
    server = GrpcServer(
        [change(method) for method in service.list_methods()],
        address=config.listen.address,
        identity=identity,
        trust_domain=config.identity.trust_domain,
        workers=config.listen.workers,
        registry=registry,
    )
    probes = HttpServer(config.listen.http, is_live=lambda: True, readiness=list, registry=registry)
    probes.start()
    server.start()
    server.set_serving(True)
    termination.wait()
    server.stop(0)
    probes.stop()
    identity.close()


def stay_silent(config: KeeperConfig, termination: Termination) -> None:
    """Accept every connection and keep it open."""
    connections = []

    def accept(listener: socket.socket) -> None:
        while True:
            connections.append(listener.accept())

    listener = socket.create_server(split_address("listen.address", config.listen.address))
    threading.Thread(target=accept, args=(listener,), daemon=True).start()
    termination.wait()


def main() -> None:
    """Lie as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="TOML file of the keeper whose place this one takes")
    parser.add_argument("--lie", choices=LIES, required=True)
    arguments = parser.parse_args()
    termination = Termination()
    config = load_config(arguments.config, os.environ)
    logs.configure(config.log.level, config.log.format)
    if arguments.lie == "half-open":
        stay_silent(config, termination)
    elif arguments.lie in MARK_LIES:
        run(config, termination, ShardSlots, lambda method: spoil_mark(method, MARK_LIES[arguments.lie]))
    else:
        change = delay if arguments.lie == "slow" else lambda method: method
        run(config, termination, SLOT_LIES.get(arguments.lie, ShardSlots), change)


if __name__ == "__main__":
    main()
