"""How a call to a server was refused: its gRPC code, and the reason and message of ours."""

from collections.abc import Callable
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class Outcome:
    """How a call ended: its code, the message and reason of an error, the bytes of an answer."""

    code: grpc.StatusCode
    details: str = ""
    reason: str = ""
    answer: bytes = b""


def read_outcome(call: Callable[[], object]) -> Outcome:
    """Make a call whose answer is of no interest."""
    try:
        call()
    except grpc.RpcError as exc:
        return Outcome(exc.code(), exc.details() or "", read_reason(exc))
    return Outcome(grpc.StatusCode.OK)


def read_reason(error: grpc.RpcError) -> str:
    """Return the reason of our ErrorInfo; empty if there is none."""
    status = rpc_status.from_call(error)
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == "shardhold":
            return str(info.reason)
    return ""


class Refusal:
    """A block that has to end with a gRPC error of a given code and, where one is named, reason."""

    def __init__(self, code: grpc.StatusCode, reason: str = "", *, says: str = "") -> None:
        self._code = code
        self._reason = reason
        self._says = says  # part of the message
        self.details = ""

    def __enter__(self) -> "Refusal":
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        assert isinstance(error, grpc.RpcError), f"want {self._code}, got {error!r}"
        assert error.code() is self._code, error
        assert not self._reason or read_reason(error) == self._reason, error
        self.details = error.details() or ""
        assert self._says in self.details, f"want {self._says!r} in {self.details!r}"
        return True
