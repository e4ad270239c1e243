"""The table of all RPCs of a nexus, from the contracts: an RPC without a handler of its name stops the start."""

import re

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from common.server.edge import Method
from nexus.server.cluster import ClusterHandlers
from nexus.server.policies import PolicyHandlers
from nexus.server.secrets import SecretHandlers
from nexus.server.unseal import RecoveryHandlers
from shardhold.v1 import cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2


def list_methods(
    secrets: SecretHandlers, policies: PolicyHandlers, cluster: ClusterHandlers, recovery: RecoveryHandlers
) -> list[Method]:
    """Return name, messages and handler of every RPC."""
    return [
        *_bind(secrets_pb2.DESCRIPTOR.services_by_name["SecretService"], secrets),
        *_bind(policies_pb2.DESCRIPTOR.services_by_name["PolicyService"], policies),
        *_bind(cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"], cluster),
        *_bind(recovery_pb2.DESCRIPTOR.services_by_name["RecoveryService"], recovery),
    ]


def _bind(service: ServiceDescriptor, handlers: object) -> list[Method]:
    return [
        Method(
            name=f"/{service.full_name}/{rpc.name}",
            request=GetMessageClass(rpc.input_type),
            response=GetMessageClass(rpc.output_type),
            handle=getattr(handlers, _handler_name(rpc.name)),
        )
        for rpc in service.methods
    ]


def _handler_name(rpc: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
