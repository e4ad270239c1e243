"""A real server on this machine that answers one method over mTLS, and channels to it."""

from collections.abc import Callable
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from common.server.edge import Call, GrpcServer, Method
from keeper.v1 import keeper_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import certify
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.raw_calls import connect

SERVICE = "keeper.v1.KeeperService"
METHOD = f"/{SERVICE}/GetStatus"
DNS = "k1.keeper.shardhold"
CALLER = "spiffe://example.test/shardhold/nexus/n1"

Answer = Callable[[Call, Any], Any]


def answer_caller(call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(version=call.caller)


class Bench:
    """A server that answers one method, and channels to it."""

    def __init__(self, answer: Answer, **options: Any) -> None:
        self.ca = Authority("example.test")
        self.identity = FixedIdentity(self.ca.issue("/shardhold/keeper/k1", dns=DNS))
        self.registry = CollectorRegistry()
        self.server = GrpcServer(
            [Method(METHOD, pb.GetStatusRequest, pb.GetStatusResponse, answer)],
            address=options.pop("address", "127.0.0.1:0"),
            identity=self.identity,
            trust_domain="example.test",
            registry=self.registry,
            **options,
        )
        self._channels: list[grpc.Channel] = []
        self.port = self.server.start()

    def connect(self, *uris: str) -> grpc.Channel:
        credentials = certify(self.ca, uris=uris or (CALLER,))
        self._channels.append(connect(self.port, credentials, self.ca, server_name=DNS))
        return self._channels[-1]

    def count_calls(self, code: str) -> float:
        return self.registry.get_sample_value("shardhold_calls_total", {"rpc": "GetStatus", "code": code}) or 0.0

    def close(self) -> None:
        for channel in self._channels:
            channel.close()
        self.server.stop(0)
