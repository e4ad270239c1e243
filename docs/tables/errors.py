"""The tables of errors, from those of the servers, the one table of their codes, and the SDK's reading of both."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.rpc import error_details_pb2, status_pb2

from common import errors
from common.server.edge import code_of
from docs.tables.markdown import code, render_table
from shardhold._errors import ERROR_DOMAIN, from_rpc

_YES: Final = "yes"
_LATER: Final = "later"
_NO: Final = "no"


@dataclass(frozen=True, slots=True)
class Advice:
    """What an error means to a caller, and what is to be done about it."""

    repeat: str  # whether the same call may work at once, later, or not
    meaning: str
    remedy: str


# Of a call to a nexus, by reason.
REASONS: Final[Mapping[str, Advice]] = {
    "INVALID_ARGUMENT": Advice(
        _NO, "an argument breaks a rule; the message names it, what it was and what is wanted", "mend the request"
    ),
    "UNAUTHENTICATED": Advice(
        _NO,
        "the certificate is no SVID of this trust domain, or it has expired since the connection began",
        "connect anew with the current SVID; look at both clocks",
    ),
    "DENIED": Advice(
        _NO,
        "no role or policy allows it; it looks the same whether the path exists or not",
        "have a policy give what the message names ([policies](policies.md)), or take the role that it names",
    ),
    "NOT_FOUND": Advice(
        _NO, "what is named does not exist, or no longer does", "look at what the message says is left"
    ),
    "VERSION_CONFLICT": Advice(
        _NO, "check-and-set found another version; the message names both", "read, decide again, and send a new request"
    ),
    "WRONG_STATE": Advice(
        _NO, "not served in the state that the nexus is in, and waiting does not change that", "`pilot status`"
    ),
    "NEXUS_RECOVERING": Advice(
        _YES,
        "the nexus is recovering its root key from its keepers, which takes seconds",
        "if it lasts, `pilot status` says what it waits for",
    ),
    "NEXUS_SEALED": Advice(
        _LATER,
        "only custodians can bring the root key back",
        "`pilot unseal` ([recovery](recovery.md)); do not wait for it",
    ),
    "IDENTITY_UNAVAILABLE": Advice(_YES, "the nexus has no valid SVID of its own", "its SPIRE agent, or its files"),
    "STORE_UNAVAILABLE": Advice(
        _YES, "the store cannot be read or written; the change was not made", "the log of the nexus, and its disk"
    ),
    "OUTCOME_UNKNOWN": Advice(
        _YES,
        "a commit failed, and only a restart of the nexus can tell whether it took effect",
        "repeat it under its request id, which makes the change once",
    ),
    "NOT_SCRUBBED": Advice(
        _YES,
        "the versions are destroyed, but their values may be in the files of the store yet",
        "repeat it under its request id, until it succeeds",
    ),
    "AUDIT_UNAVAILABLE": Advice(
        _LATER,
        "the audit cannot be written, so the call was refused; a change was not made",
        "the audit's disk; the log of the nexus names the file",
    ),
    "OVERLOADED": Advice(
        _LATER, "a limit is reached, which the message names", "send less at once; [limits](limits.md) has the numbers"
    ),
    "MEMORY_PROTECTION": Advice(
        _LATER, "protected memory has no room for another key or share just now", "ask again; then `RLIMIT_MEMLOCK`"
    ),
    "UNAVAILABLE": Advice(
        _LATER,
        "the nexus cannot start a process or thread that it needs for the call",
        "memory and limits of its machine",
    ),
    "CALLER_GONE": Advice(_NO, "the caller has left, or its deadline has passed", "nothing: nobody reads it"),
    "BACKUP_UNAVAILABLE": Advice(
        _LATER,
        "a backup cannot be made or read now",
        "its folder; another backup may be running ([backups](backups.md))",
    ),
    "BACKUP_DAMAGED": Advice(
        _NO, "a backup is not whole, of another cluster, or no key was given that opens it", "make a new one"
    ),
    "WORDS": Advice(
        _NO, "the words are no share of this cluster's recovery key", "the custodian enters them again; nothing is lost"
    ),
    "STATEMENT": Advice(
        _NO, "the key that a share was sealed to is used, too old, or another caller's", "`pilot unseal` once more"
    ),
    "OPERATION_REFUSED": Advice(
        _NO,
        "an operation on the root key cannot begin, go on or end like this; nearly always the rule is the reason",
        "[the rules](rotation.md#what-is-refused)",
    ),
    "DECRYPTION": Advice(
        _NO, "the stored value does not open; others may", "an operator; then put the value again, as a new version"
    ),
    "CORRUPT_ROW": Advice(
        _NO,
        "a stored row is missing, or is not what was written; other rows may be well",
        "an operator; [what bad things get](../SECURITY.md#what-bad-things-get)",
    ),
    "INTEGRITY": Advice(_NO, "something that was just made does not check", "an operator; the log of the nexus"),
    "INTERNAL": Advice(
        _NO, "a fault in the nexus, which the answer says nothing about", "an operator; the log of the nexus"
    ),
    "INJECTED": Advice(_NO, "a failpoint; only clusters of developers have them", "disarm it"),
}

# Those that no caller of a nexus gets: they stand in logs and exit messages, and between a nexus and its keepers.
INSIDE: Final[Mapping[str, str]] = {
    "KEEPER_UNREACHABLE": "a keeper does not answer; `pilot keeper list` shows it",
    "KEEPER_TOO_OLD": "a keeper of an earlier release does not know what is asked of it",
    "SET_NOT_NEWER": "a keeper has held a newer shard set than the one that it is given",
    "BAD_SHARD": "a keeper showed a shard that does not match its commitment",
    "TOO_FEW_SHARDS": "fewer keepers than the threshold gave a shard",
    "MIXED_SHARDS": "shards of two sets came together",
    "WRONG_ROOT_KEY": "the rebuilt key is not the one of this cluster and generation",
    "CHAIN": "a chain of generations does not verify",
    "MARK": "a rollback mark does not verify",
    "CONFIG": "an option is wrong; the process ends with exit code 2 before it opens a port",
    "REFUSED": "none of its own: the family of what the caller has to change",
}

# What grpc and our servers say without an ErrorInfo, since no handler was reached or the call was ended from outside.
UNEXPLAINED: Final[Mapping[grpc.StatusCode, Advice]] = {
    grpc.StatusCode.UNAVAILABLE: Advice(
        _YES,
        "no connection: nothing listens, the handshake failed, or the server stops; or an answer was not read",
        "the address, the SVID and both clocks; [limits](limits.md#calls)",
    ),
    grpc.StatusCode.CANCELLED: Advice(
        _YES,
        "the server ended the call: it stops, or the connection was too old",
        "nothing: the next try connects anew",
    ),
    grpc.StatusCode.DEADLINE_EXCEEDED: Advice(
        _LATER,
        "no answer in time; a change may have been made or not",
        "send the same request under the same request id",
    ),
    grpc.StatusCode.RESOURCE_EXHAUSTED: Advice(
        _LATER, "too many calls at once, or a message that is too large", "send less; [limits](limits.md#calls)"
    ),
    grpc.StatusCode.UNIMPLEMENTED: Advice(
        _NO,
        "the server does not know the call, or the message was compressed",
        "the address, and the release of the nexus",
    ),
    grpc.StatusCode.INTERNAL: Advice(_NO, "the HTTP/2 of one side broke", "what stands between client and nexus"),
    grpc.StatusCode.UNKNOWN: Advice(_NO, "an error that is not Shardhold's", "what stands between client and nexus"),
}


class _Refusal(grpc.RpcError):
    """What a client gets with this code and reason."""

    def __init__(self, code: grpc.StatusCode, reason: str = "") -> None:
        self._code = code
        self._status = status_pb2.Status(code=code.value[0])
        if reason:
            self._status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return ""

    def trailing_metadata(self) -> Any:
        return (("grpc-status-details-bin", self._status.SerializeToString()),)


def list_codes() -> list[tuple[str, grpc.StatusCode]]:
    """Return reason and code of every error of the servers."""
    return [(kind.reason, code_of(kind(""))) for kind in _list_kinds(errors.ShardholdError)]


def render_reasons() -> str:
    """Return the table of reasons that a caller can get."""
    codes = dict(list_codes())
    rows = [
        (code(reason), codes[reason].name, _name_error(codes[reason], reason), one.repeat, one.meaning, one.remedy)
        for reason, one in REASONS.items()
    ]
    return render_table(["reason", "code", "in the SDK", "repeat", "means", "look at, or do"], rows)


def render_inside() -> str:
    """Return the table of reasons that no caller gets."""
    return render_table(["reason", "means"], [(code(reason), text) for reason, text in INSIDE.items()])


def render_unexplained() -> str:
    """Return the table of codes that come without a reason."""
    rows = [
        (status.name, _name_error(status), one.repeat, one.meaning, one.remedy) for status, one in UNEXPLAINED.items()
    ]
    return render_table(["code", "in the SDK", "repeat", "means", "look at, or do"], rows)


def _list_kinds(base: type[errors.ShardholdError]) -> Iterator[type[errors.ShardholdError]]:
    yield base
    for kind in base.__subclasses__():
        yield from _list_kinds(kind)


def _name_error(status: grpc.StatusCode, reason: str = "") -> str:
    return code(type(from_rpc(_Refusal(status, reason))).__name__)
