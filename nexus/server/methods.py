"""All RPCs of a nexus, from the contracts: one without a row in `nexus.access.calls`, or a handler, stops the start."""

import re

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from common.server.edge import Method
from nexus.access import calls
from nexus.server.audit import AuditHandlers
from nexus.server.backup import BackupHandlers
from nexus.server.cluster import ClusterHandlers
from nexus.server.policies import PolicyHandlers
from nexus.server.root import RootHandlers
from nexus.server.secrets import SecretHandlers
from nexus.server.unseal import RecoveryHandlers
from shardhold.v1 import audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2


def list_methods(
    secrets: SecretHandlers,
    policies: PolicyHandlers,
    cluster: ClusterHandlers,
    recovery: RecoveryHandlers,
    audit: AuditHandlers,
    root: RootHandlers,
    backup: BackupHandlers,
) -> list[Method]:
    """Return name, messages and handler of every RPC; raises as `bind`."""
    return [
        *bind(secrets_pb2.DESCRIPTOR.services_by_name["SecretService"], secrets),
        *bind(policies_pb2.DESCRIPTOR.services_by_name["PolicyService"], policies),
        *bind(cluster_pb2.DESCRIPTOR.services_by_name["ClusterService"], cluster),
        *bind(recovery_pb2.DESCRIPTOR.services_by_name["RecoveryService"], recovery),
        *bind(audit_pb2.DESCRIPTOR.services_by_name["AuditService"], audit),
        *bind(root_pb2.DESCRIPTOR.services_by_name["RootService"], root),
        *bind(backup_pb2.DESCRIPTOR.services_by_name["BackupService"], backup),
    ]


def bind(service: ServiceDescriptor, handlers: object) -> list[Method]:
    """Bind every RPC of *service* to its handler among *handlers*.

    Raises:
        LookupError: An RPC has no row in `nexus.access.calls`.
        AttributeError: An RPC has no handler of its name.
    """
    names = {f"/{service.full_name}/{rpc.name}": rpc for rpc in service.methods}
    if missing := sorted(names.keys() - calls.BY_FULL_NAME.keys()):
        raise LookupError(f"no row in nexus.access.calls: {', '.join(missing)}")
    return [
        Method(
            name=name,
            request=GetMessageClass(rpc.input_type),
            response=GetMessageClass(rpc.output_type),
            handle=getattr(handlers, _handler_name(rpc.name)),
        )
        for name, rpc in names.items()
    ]


def _handler_name(rpc: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", rpc).lower()
