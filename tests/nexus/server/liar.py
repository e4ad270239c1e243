"""Keepers in the process of a test, at the other end of a real link."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from common.clock import SystemClock
from common.keys.protected import ProtectedMemory
from common.keys.statement import StatementDesk
from common.server.edge import Call, GrpcServer, Method
from keeper.service import KeeperService
from keeper.slots import ShardSlots
from keeper.v1 import keeper_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.keepers import NEXUS_PATH

KEEPER_PATH = "/shardhold/keeper/k1"
DNS = "k1.keeper.shardhold"


class Liar:
    """A keeper in this process, true in all but the answers that a test bends."""

    def __init__(self, ca: Authority, memory: ProtectedMemory) -> None:
        identity = FixedIdentity(ca.issue(KEEPER_PATH, dns=DNS))
        service = KeeperService(
            ShardSlots(memory),
            desk=StatementDesk(SystemClock()),
            memory=memory,
            identity=identity,
            boot_id=b"b" * 16,
            nexuses=[f"spiffe://example.test{NEXUS_PATH}"],
        )
        self.bend: Callable[[Any], Any] = lambda answer: answer
        self.sealed: list[pb.PutShardRequest] = []
        methods = [replace(method, handle=self._bent(method)) for method in service.list_methods()]
        self.server = GrpcServer(methods, address="127.0.0.1:0", identity=identity, trust_domain="example.test")
        self.port = self.server.start()

    def _bent(self, method: Method) -> Callable[[Call, Any], Any]:
        def answer(call: Call, request: Any) -> Any:
            if isinstance(request, pb.PutShardRequest):
                self.sealed.append(request)
            answer = method.handle(call, request)
            return self.bend(answer) or answer

        return answer


class OlderKeeper(Liar):
    """A keeper of the release before by the wire: it reads and answers no field that came later."""

    def __init__(self, ca: Authority, memory: ProtectedMemory) -> None:
        super().__init__(ca, memory)
        self.bend = forget_format

    def _bent(self, method: Method) -> Callable[[Call, Any], Any]:
        true = super()._bent(method)

        def answer(call: Call, request: Any) -> Any:
            forget_format(request)
            return true(call, request)

        return answer


def forget_format(message: Any) -> None:
    """Clear what the release before does not know."""
    for field in ("format", "put_format"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
