"""Calls of a server by bytes, as anybody."""

import grpc

from tests.kit.authority import Authority
from tests.kit.credentials import Credentials
from tests.kit.patience import at_most
from tests.kit.refusal import Outcome, read_reason


def connect(port: int, credentials: Credentials | None, ca: Authority, *, server_name: str) -> grpc.Channel:
    """Open a plain gRPC channel to 127.0.0.1; without credentials it shows no certificate."""
    secrets = (
        grpc.ssl_channel_credentials(credentials.roots, credentials.key, credentials.certificate)
        if credentials
        else grpc.ssl_channel_credentials(ca.bundle_pem)
    )
    options = [("grpc.ssl_target_name_override", server_name), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"127.0.0.1:{port}", secrets, options=options)


def call(channel: grpc.Channel, method: str, body: bytes = b"", *, timeout: float = at_most(10)) -> Outcome:
    """Call *method*, with its full name, by bytes."""
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    try:
        return Outcome(grpc.StatusCode.OK, answer=unary(body, timeout=timeout))
    except grpc.RpcError as exc:
        return Outcome(exc.code(), exc.details() or "", read_reason(exc))
