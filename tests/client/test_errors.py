"""The SDK's errors: what each answer of a server becomes."""

import inspect
import json
import pickle
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import NoReturn, TypeVar

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from common.errors import ShardholdError
from common.server.edge import code_of
from shardhold import _errors
from shardhold._errors import (
    ConflictError,
    DeadlineError,
    DeniedError,
    Error,
    IdentityUnavailableError,
    IntegrityError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    RecoveringError,
    SealedError,
    UnauthenticatedError,
    UnavailableError,
    WrongStateError,
    from_rpc,
)
from tests.kit.patience import at_most

Kind = TypeVar("Kind")
Answer = Callable[..., grpc.RpcError]
CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}


def _every_class(root: type[Kind]) -> list[type[Kind]]:
    return [root, *(found for kind in root.__subclasses__() for found in _every_class(kind))]


class _Refuser(grpc.GenericRpcHandler):
    """Answers every call with the status that the request describes."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, request: bytes, context: grpc.ServicerContext) -> NoReturn:
        wanted = json.loads(request)
        code = CODES_BY_NUMBER[wanted["code"]]
        if wanted["reason"] is None:
            context.abort(code, wanted["message"])
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.ErrorInfo(domain=wanted["domain"], reason=wanted["reason"]))
        status = status_pb2.Status(code=wanted["stated"], message=wanted["message"], details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.abort(code, wanted["message"])


@pytest.fixture(scope="module")
def answer() -> Iterator[Answer]:
    """Return what a stub raises when a real server answers with the given code, reason and message."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Refuser(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/test/Refuse")

        def refuse(
            code: grpc.StatusCode,
            *,
            reason: str | None = None,
            message: str = "it says why",
            domain: str = "shardhold",
            stated: grpc.StatusCode | None = None,
        ) -> grpc.RpcError:
            wanted = {"code": code.value[0], "reason": reason, "message": message, "domain": domain}
            with pytest.raises(grpc.RpcError) as caught:
                call(json.dumps({**wanted, "stated": (stated or code).value[0]}).encode(), timeout=at_most(10))
            assert isinstance(caught.value, grpc.RpcError)
            return caught.value

        yield refuse
    server.stop(0).wait()


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=str)
def test_every_code_has_an_error(answer: Answer, code: grpc.StatusCode) -> None:
    """Every code that a server can refuse with becomes an error of ours, with code and message kept."""
    error = from_rpc(answer(code))
    assert type(error) is not Error
    assert (error.code, error.reason, error.message) == (code, "", "it says why")


def test_table_is_total() -> None:
    """The table has every code of gRPC, so that a new one is noticed here and not by a user."""
    assert set(_errors._BY_CODE) == set(grpc.StatusCode)


@pytest.mark.parametrize("kind", _every_class(ShardholdError))
def test_every_reason_of_the_servers_has_an_error(answer: Answer, kind: type[ShardholdError]) -> None:
    """Whatever a nexus raises arrives as an error of ours that still carries the reason."""
    error = from_rpc(answer(code_of(kind("it says why")), reason=kind.reason))
    assert type(error) is not Error
    assert (error.reason, error.message, error.hint) == (kind.reason, "it says why", "")


@pytest.mark.parametrize(
    ("code", "reason", "wanted"),
    [
        pytest.param(grpc.StatusCode.UNAVAILABLE, "NEXUS_SEALED", SealedError, id="sealed"),
        pytest.param(grpc.StatusCode.UNAVAILABLE, "NEXUS_RECOVERING", RecoveringError, id="recovering"),
        pytest.param(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", UnavailableError, id="store"),
        pytest.param(grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", OverloadedError, id="overloaded"),
        pytest.param(
            grpc.StatusCode.RESOURCE_EXHAUSTED, None, OverloadedError, id="message too large for the transport"
        ),
        pytest.param(grpc.StatusCode.PERMISSION_DENIED, "DENIED", DeniedError, id="denied"),
        pytest.param(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", UnauthenticatedError, id="no SPIFFE ID"),
        pytest.param(grpc.StatusCode.NOT_FOUND, "NOT_FOUND", NotFoundError, id="not found"),
        pytest.param(grpc.StatusCode.ABORTED, "VERSION_CONFLICT", ConflictError, id="check-and-set"),
        pytest.param(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", InvalidArgumentError, id="argument"),
        pytest.param(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE", WrongStateError, id="state"),
        pytest.param(grpc.StatusCode.DATA_LOSS, "DECRYPTION", IntegrityError, id="does not open"),
        pytest.param(grpc.StatusCode.INTERNAL, "INTERNAL", InternalError, id="fault of the server"),
        pytest.param(grpc.StatusCode.DEADLINE_EXCEEDED, None, DeadlineError, id="deadline"),
        pytest.param(grpc.StatusCode.CANCELLED, None, UnavailableError, id="ended by the server"),
    ],
)
def test_kind(answer: Answer, code: grpc.StatusCode, reason: str | None, wanted: type[Error]) -> None:
    """What a caller can do decides the class: the reason takes precedence where it says more than the code."""
    assert type(from_rpc(answer(code, reason=reason))) is wanted


def test_reason_of_another_domain_is_not_ours(answer: Answer) -> None:
    """An ErrorInfo of another domain, such as a proxy's, does not make the nexus look sealed."""
    error = from_rpc(answer(grpc.StatusCode.UNAVAILABLE, reason="NEXUS_SEALED", domain="mesh.example"))
    assert (type(error), error.reason) == (UnavailableError, "")


def test_details_that_contradict_the_code_are_ignored(answer: Answer) -> None:
    """The code on the wire decides when the details state another code."""
    error = from_rpc(
        answer(grpc.StatusCode.UNAVAILABLE, reason="NEXUS_SEALED", stated=grpc.StatusCode.PERMISSION_DENIED)
    )
    assert (type(error), error.reason) == (UnavailableError, "")


@pytest.mark.parametrize(
    ("details", "hint"),
    [
        pytest.param("ipv4:127.0.0.1:1: Failed to connect: Connection refused (111)", "nothing listens", id="nobody"),
        pytest.param("DNS resolution failed for nowhere.test:8553", "cannot be resolved", id="name"),
        pytest.param(
            "CERTIFICATE_VERIFY_FAILED: certificate has expired: OK", "has expired: check the clock", id="old"
        ),
        pytest.param("CERTIFICATE_VERIFY_FAILED: certificate is not yet valid", "not valid yet", id="of the future"),
        pytest.param("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "trust domain", id="foreign"),
        pytest.param("Hostname Verification Check failed.", "is no nexus", id="another server"),
        pytest.param("OPENSSL_internal:WRONG_VERSION_NUMBER", "does not speak TLS", id="no TLS"),
        pytest.param("last error: UNAVAILABLE: Socket closed", "no server accepted this SVID", id="refused in silence"),
    ],
)
def test_transport_failures_have_hints(answer: Answer, details: str, hint: str) -> None:
    """What gRPC says about a failed connection becomes a hint that names what to check."""
    assert hint in from_rpc(answer(grpc.StatusCode.UNAVAILABLE, message=details)).hint


def test_errors_survive_pickling() -> None:
    """An error arrives whole from a worker process."""
    error = DeniedError("not allowed", grpc.StatusCode.PERMISSION_DENIED, "DENIED", "ask for a policy")
    error.cause = grpc.RpcError("not for other processes")
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), vars(copy), copy.cause) == (DeniedError, vars(error), None)


def test_text_has_the_hint() -> None:
    """The text of an error includes its hint, for those who only print it."""
    assert str(IdentityUnavailableError("no identity", hint="set a socket")) == "no identity (set a socket)"
    assert str(NotFoundError("no such path")) == "no such path"


def test_tree_is_drawn_whole() -> None:
    """The tree at the top of the module names every class."""
    drawing = inspect.getdoc(_errors) or ""
    assert [kind.__name__ for kind in _every_class(Error) if kind.__name__ not in drawing] == []


def test_status_helper_agrees(answer: Answer) -> None:
    """The fixture's answers are what grpc_status reads, so the tests above use realistic answers."""
    error = answer(grpc.StatusCode.NOT_FOUND, reason="NOT_FOUND")
    assert rpc_status.from_call(error).message == "it says why"
