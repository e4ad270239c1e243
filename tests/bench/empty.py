"""The baseline of calls: a server with the settings of a nexus, whose one method returns an empty message.

python -m tests.bench.empty ENDPOINT TRUST_DOMAIN PORT
"""

import sys
import threading

from prometheus_client import CollectorRegistry

import common.server.preload  # noqa: F401 - before gRPC, as the servers do
from common.config.config import IdentityOptions, ListenOptions
from common.server import logs
from common.server.edge import Call, GrpcServer, Method
from common.server.identity import wait_for_identity
from pilot.dev.ports import HOST
from shardhold.v1.secrets_pb2 import GetSecretRequest, GetSecretResponse

METHOD = "/shardhold.v1.SecretService/GetSecret"


def answer(_call: Call, _request: GetSecretRequest) -> GetSecretResponse:
    """Return an empty message."""
    return GetSecretResponse()


def main() -> None:
    """Serve until killed."""
    endpoint, trust_domain, port = sys.argv[1:]
    logs.configure()
    never = threading.Event()
    options = ListenOptions(address=f"{HOST}:{port}", http="")
    server = GrpcServer(
        [Method(METHOD, GetSecretRequest, GetSecretResponse, answer)],
        address=options.address,
        identity=wait_for_identity(IdentityOptions(trust_domain=trust_domain, socket=endpoint), never),
        trust_domain=trust_domain,
        workers=options.workers,
        max_connection_age_s=options.max_connection_age_s,
        registry=CollectorRegistry(),
    )
    server.start()
    server.set_serving(True)
    never.wait()


if __name__ == "__main__":
    main()
