"""Every error that the SDK raises, and the one table from gRPC codes to them.

    Error
    ├── UnavailableError               the same call may work later
    │   ├── SealedError                only custodians can bring the nexus back
    │   ├── RecoveringError            the nexus is recovering its root key
    │   └── OverloadedError            a limit on calls or sizes is reached
    ├── DeadlineError                  no answer in time; a change may have been made or not
    ├── ClientClosedError              the client was closed before or during the call
    ├── IdentityUnavailableError       this process has no usable SVID
    ├── UnauthenticatedError           the server does not accept this SVID
    ├── DeniedError                    no role or policy allows the call
    ├── NotFoundError                  no such secret, version or policy
    ├── ConflictError                  check-and-set found another version
    ├── InvalidArgumentError           an argument breaks a rule that the message names
    ├── WrongStateError                not served in this state; waiting does not change that
    ├── UnsupportedError               the server does not know this call
    ├── IntegrityError                 what the server read is not what was written: tell its operators
    ├── InternalError                  a fault in the server
    ├── NoSuchFieldError               the secret was read, and has no such field; a KeyError too
    └── NotTextError                   the field is no UTF-8 text; a ValueError too

`reason` is the stable word of google.rpc.ErrorInfo, empty when no Shardhold server answered; match on it rather than on
messages.
"""

from collections.abc import Mapping
from types import MappingProxyType

from shardhold._public import public
from shardhold._quiet import grpc

# Only ErrorInfo of this domain is ours.
ERROR_DOMAIN = "shardhold"


@public
class Error(Exception):
    """Base of all errors of the SDK.

    `message` says what happened and never contains a secret; `code` is the gRPC code, None when no call was made.
    `reason` is the server's stable word, `hint` says what to check next; both may be empty. `cause` is what gRPC or the
    source of the identity raised, for debugging; no traceback prints it, and no pickle has it.
    """

    __slots__ = ("cause",)  # what is not in the dictionary of an exception is not pickled

    cause: BaseException | None

    def __init__(self, message: str, code: grpc.StatusCode | None = None, reason: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.cause = None
        self.message = message
        self.code = code
        self.reason = reason
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


@public
class UnavailableError(Error):
    """The same call may work later."""


@public
class SealedError(UnavailableError):
    """The nexus is sealed; only custodians can bring it back."""


@public
class RecoveringError(UnavailableError):
    """The nexus does not have its root key yet, and is recovering it."""


@public
class OverloadedError(UnavailableError):
    """A limit on calls in flight, on rate or on message size is reached."""


@public
class DeadlineError(Error):
    """No answer within the deadline. A change may have been made or not: repeat its `request_id` to find out."""


@public
class ClientClosedError(Error):
    """The client was closed before or during the call, or belongs to the process that this one was forked from."""


@public
class IdentityUnavailableError(Error):
    """This process has no SVID, or an expired one."""


@public
class UnauthenticatedError(Error):
    """The server found no usable SPIFFE ID in this side's certificate."""


@public
class DeniedError(Error):
    """No role or policy allows the call; the error does not reveal whether the path exists."""


@public
class NotFoundError(Error):
    """What was asked for does not exist, or no longer does."""


@public
class ConflictError(Error):
    """A check-and-set found a version other than the expected one; the message names both."""


@public
class InvalidArgumentError(Error):
    """An argument breaks a rule; the message names it."""


@public
class WrongStateError(Error):
    """The call is not served in this state, and waiting does not change that."""


@public
class UnsupportedError(Error):
    """The server does not know this call: it is older than this SDK, or no nexus at all."""


@public
class IntegrityError(Error):
    """Something stored is not what was written. The rest still works; the server's operators must look into it."""


@public
class InternalError(Error):
    """A fault in the server; its log has the details."""


@public
class NoSuchFieldError(Error, KeyError):
    """The secret has no field of this name; the message names those that it has."""


@public
class NotTextError(Error, ValueError):
    """The value of the field is not UTF-8 text: read its bytes with `secret["…"]`."""


_BY_CODE: Mapping[grpc.StatusCode, type[Error]] = MappingProxyType(
    {
        grpc.StatusCode.OK: InternalError,  # an RpcError that says OK is not an answer
        grpc.StatusCode.CANCELLED: ClientClosedError,
        grpc.StatusCode.UNKNOWN: InternalError,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
        grpc.StatusCode.NOT_FOUND: NotFoundError,
        grpc.StatusCode.ALREADY_EXISTS: ConflictError,
        grpc.StatusCode.PERMISSION_DENIED: DeniedError,
        grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
        grpc.StatusCode.FAILED_PRECONDITION: WrongStateError,
        grpc.StatusCode.ABORTED: ConflictError,
        grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
        grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
        grpc.StatusCode.INTERNAL: InternalError,
        grpc.StatusCode.UNAVAILABLE: UnavailableError,
        grpc.StatusCode.DATA_LOSS: IntegrityError,
        grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    }
)

# Reasons that say more than their code.
_BY_REASON: Mapping[str, type[Error]] = MappingProxyType(
    {
        "NEXUS_SEALED": SealedError,
        "NEXUS_RECOVERING": RecoveringError,
        "OVERLOADED": OverloadedError,
    }
)

# What gRPC says of a call that this side gave up. Any other CANCELLED comes from the server, which ends its calls when
# it stops or when their connection is too old.
_LOCAL_CANCELLATIONS = frozenset(
    {
        "Channel closed!",
        "Channel deallocated!",
        "Locally cancelled by application!",
        "Call cancelled in fork child",
    }
)

_ENDED_BY_SERVER = "the server ended the call, as it does when it stops: try again"
_NO_SERVER = "nothing listens there: check the address, and that the server runs"
_NO_HANDSHAKE = (
    "no server accepted this SVID, or none showed the expected name: check the trust domain, that the SVID is current, "
    "and that the address is a nexus"
)
_BAD_ADDRESS = "the address cannot be resolved: check it"

# What words of gRPC and BoringSSL usually mean: in lower case, the most specific first.
_BY_DETAILS: Mapping[str, str] = MappingProxyType(
    {
        "connection refused": _NO_SERVER,
        "no such file": _NO_SERVER,
        "certificate has expired": "by this machine's clock the server's SVID has expired: check the clock first",
        "certificate is not yet valid": "by this machine's clock the server's SVID is not valid yet: check the clock",
        "certificate_verify_failed": (
            "the server's SVID is of another trust domain than this one, or of an authority that is not known here: "
            "check the address and the trust domain"
        ),
        "hostname verification": "the server there is no nexus of this trust domain: check the address",
        "wrong_version_number": "what listens there does not speak TLS: check the address",
        "dns": _BAD_ADDRESS,
        "resol": _BAD_ADDRESS,
    }
)


def from_rpc(error: grpc.RpcError) -> Error:
    """Turn what a stub raised into the SDK's error; total over all gRPC codes.

    The reason takes precedence where it says more than the code. Use it as ``raise from_rpc(exc) from None``: the error
    has *exc* as its cause, and whoever prints a traceback is spared the frames of gRPC.
    """
    code = error.code()
    details = error.details() or ""
    reason = _read_reason(error)
    kind = _BY_REASON.get(reason) or _BY_CODE.get(code, InternalError)
    if kind is ClientClosedError and details not in _LOCAL_CANCELLATIONS:
        kind = UnavailableError
    translated = kind(details or f"the call failed with {code.name}", code, reason, _hint(code, details, reason))
    translated.cause = error.with_traceback(None)
    return translated


def shorten(error: Error) -> Error:
    """Drop the frames that *error* went through so far, and keep what it was raised from as its `cause` only.

    Use it as ``raise shorten(exc) from None``.
    """
    error.cause = error.__cause__ or error.cause
    return error.with_traceback(None)


def _read_reason(error: grpc.RpcError) -> str:
    # Imported here, so that a process without errors does not pay for it.
    from google.protobuf.message import DecodeError
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    try:
        status = rpc_status.from_call(error)
        if status is None:
            return ""
        for detail in status.details:
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info) and info.domain == ERROR_DOMAIN:
                return str(info.reason)
    except (ValueError, DecodeError):  # details that contradict the code, or are not a message at all: not ours
        return ""
    return ""


def _hint(code: grpc.StatusCode, details: str, reason: str) -> str:
    """Guess what a transport failure means: a refused handshake reaches no handler, so the server sends no reason."""
    if code is grpc.StatusCode.CANCELLED and details not in _LOCAL_CANCELLATIONS:
        return _ENDED_BY_SERVER
    if code is not grpc.StatusCode.UNAVAILABLE or reason:
        return ""
    lowered = details.lower()
    return next((hint for words, hint in _BY_DETAILS.items() if words in lowered), _NO_HANDSHAKE)
