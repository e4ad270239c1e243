"""The tables of limits, each with the number that the code has.

Limits that are no constants are held by `tests/docs/test_limits.py`, which meets them.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from common.forms.chain import MAX_LINKS
from common.keys.words import MAX_SHARES
from common.server import answers, edge, http, peer
from common.server.watches import Watches
from docs.tables.markdown import code, render_table
from nexus.access.audit import reader
from nexus.admin import audit, policies, policy_warnings, seal, unseal
from nexus.admin.operations import impact, reshare_plan
from nexus.config import NexusListenOptions
from nexus.keys.operation.preflight import SPARE_LINKS
from nexus.policy import keeping, paths, rules
from nexus.server import root
from nexus.store import requests
from nexus.vault import expected, fields, listing, scrubbing, secrets
from pilot.commands import policy as policy_command
from shardhold import _calls as sdk
from shardhold import _connections as connections

Row: TypeAlias = tuple[str, str, str]  # what, its limit, and what happens beyond

_INVALID: Final = code("INVALID_ARGUMENT")
_OVERLOADED: Final = code("OVERLOADED")
_EXHAUSTED: Final = "RESOURCE_EXHAUSTED, no reason"
_LATE: Final = "DEADLINE_EXCEEDED, no reason"


def render_limits(heading: str) -> str:
    """Return the table that stands below *heading*."""
    return render_table(["what", "limit", "beyond it"], LIMITS[heading])


def _default(function: Callable[..., Any], parameter: str) -> Any:
    return inspect.signature(function).parameters[parameter].default


def _size(count: int) -> str:
    """Return bytes as people write them; exact."""
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count % size == 0:
            return f"{count // size} {unit}"
    return f"{count:,} bytes"


def _time(seconds: float) -> str:
    """Return seconds as people say them; exact."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


def _up_to(count: int) -> str:
    return f"1 to {count:,}"


_LISTEN: Final = NexusListenOptions()
_TRANSPORT: Final = dict(edge._TRANSPORT_OPTIONS)
_GLOB: Final = f"{_up_to(paths.MAX_SEGMENTS)} segments, {paths.MAX_PATH_BYTES} bytes in all"
_UNREAD: Final = _size(_default(answers.Answers.__init__, "per_caller"))
_UNREAD_OF_ALL: Final = _size(_default(answers.Answers.__init__, "most"))
_DRAIN: Final = _time(_default(answers.Answers.__init__, "drain_s"))
_WATCHES: Final = _default(Watches.__init__, "per_caller")
_WATCHES_OF_ALL: Final = _default(Watches.__init__, "most")

LIMITS: Final[Mapping[str, tuple[Row, ...]]] = {
    "Secrets": (
        ("path", f"{_up_to(paths.MAX_SEGMENTS)} segments, {paths.MAX_PATH_BYTES} bytes in all", _INVALID),
        ("segment of a path", "1 to 128 of `[A-Za-z0-9._-]`, neither `.` nor `..`", _INVALID),
        ("first segment of a path", f"not {code(paths.RESERVED_SEGMENT)}, which is reserved", _INVALID),
        ("fields of one version", _up_to(fields.MAX_FIELDS), _INVALID),
        ("name of a field", "1 to 64 of `[A-Za-z0-9._-]`", _INVALID),
        ("one version", f"{_size(fields.MAX_BODY_BYTES)}: names, values, and 8 bytes for each field", _INVALID),
        ("fields that one patch takes out", f"{fields.MAX_FIELDS}", _INVALID),
        (
            "versions of one secret that are kept",
            f"{keeping.DEFAULT_MAX_VERSIONS} (`secrets.max_versions`), or as set for a prefix or for the secret, "
            f"at most {keeping.HIGHEST_MAX_VERSIONS:,}; 0: all",
            "the next write destroys the oldest",
        ),
        ("number of a version", _up_to(secrets.MAX_VERSION), _INVALID),
        ("versions that one request names", f"{secrets.MAX_VERSIONS_NAMED}", _INVALID),
        ("incarnation", f"{expected.INCARNATION_SIZE} bytes", _INVALID),
        ("request id", f"{secrets.REQUEST_ID_SIZE} bytes, in every change", _INVALID),
        ("age of a request that is repeated", f"24 h (kept for {_time(requests.KEPT_S)})", "it is another change"),
        (
            "time for which a destroy waits until nothing is left in the files",
            _time(scrubbing.SCRUB_S),
            code("NOT_SCRUBBED"),
        ),
        ("secrets in one page of a list, and versions in one", _up_to(secrets.MAX_PAGE), _INVALID),
        (
            "secrets that are read for one page, and not the caller's to see",
            f"{listing._MOST_HIDDEN:,}",
            f"{_OVERLOADED}: name a longer prefix",
        ),
    ),
    "Policies": (
        ("name", "1 to 64 of `[a-z0-9-]`", _INVALID),
        ("globs in one policy", f"{_up_to(rules.MAX_GLOBS)} over SPIFFE IDs, and as many over paths", _INVALID),
        ("glob over paths", _GLOB, _INVALID),
        ("glob over SPIFFE IDs", f"{_GLOB}, without the trust domain", _INVALID),
        ("policies that one request applies", _up_to(policies.MAX_APPLIED), _INVALID),
        ("file that pilot applies", _size(policy_command._MAX_FILE), "pilot refuses it"),
        ("policies in one page of a list", _up_to(policies.MAX_PAGE), _INVALID),
        ("size of one page of a list", f"{_size(policies.MAX_PAGE_SIZE)}, or one policy", "the page is shorter"),
        ("damaged policies that a list names", f"{policies.MAX_DAMAGED:,}", "the rest is not named"),
        ("policies that an explanation names", f"{policies.MAX_EXPLAINED:,}", "the rest is not named"),
        (
            "warnings about the policies of one request",
            f"{policy_warnings.MAX_WARNINGS}",
            "the last one counts the rest",
        ),
    ),
    "Calls": (
        ("message, either way", _size(edge._MAX_MESSAGE), _EXHAUSTED),
        ("compressed message", "none", "UNIMPLEMENTED, no reason"),
        ("headers of a call", _size(edge._MAX_METADATA), f"{_OVERLOADED}, or {_EXHAUSTED}"),
        (
            "calls of one caller that wait or run",
            f"{_LISTEN.max_calls_per_caller} (`listen.max_calls_per_caller`)",
            _EXHAUSTED,
        ),
        ("calls of all callers that wait or run", f"{edge.MAX_CALLS:,}", _EXHAUSTED),
        ("calls that run at once", f"{_LISTEN.workers} (`listen.workers`)", "they wait"),
        (
            "time from the start of a call to its message",
            _time(_default(edge.GrpcServer.__init__, "message_wait_s")),
            _LATE,
        ),
        (
            "answers that a caller has not read",
            f"{_UNREAD}; of all callers {_UNREAD_OF_ALL}",
            f"the oldest end (UNAVAILABLE, no reason), or a large new one is {_OVERLOADED}",
        ),
        ("time to read an answer", f"{_DRAIN}, and 1 s for each {_size(answers._SLOWEST)}", _LATE),
        ("health watches", f"{_WATCHES} of one caller, {_WATCHES_OF_ALL} of all", _OVERLOADED),
        ("message of an error", f"{edge._MAX_DETAILS:,} characters", "the rest is cut off"),
    ),
    "Connections": (
        ("connections to one server", f"{edge._MAX_CONNECTIONS:,}", "they are not accepted"),
        ("calls at once on one connection", f"{edge._MAX_STREAMS}", "they wait in the client"),
        (
            "age of a connection",
            f"{_time(_LISTEN.max_connection_age_s)} (`listen.max_connection_age_s`), "
            f"and {_time(edge._CONNECTION_GRACE_MS / 1000)} for the calls on it",
            "it is closed, and calls end with CANCELLED or UNAVAILABLE",
        ),
        ("handshake", _time(_TRANSPORT["grpc.server_handshake_timeout_ms"] / 1000), "the connection is closed"),
        (
            "acknowledgement of the server's settings",
            _time(edge._SETTINGS_TIMEOUT_MS / 1000),
            "the connection is closed",
        ),
        (
            "pings of a client",
            f"one in {_time(_TRANSPORT['grpc.http2.min_ping_interval_without_data_ms'] / 1000)}",
            "the connection is closed",
        ),
        ("SPIFFE ID", f"{peer._MAX_ID_BYTES:,} bytes", code("UNAUTHENTICATED")),
        (
            "`/livez`, `/readyz` and `/metrics`",
            f"{_size(http.REQUEST_LIMIT)} of request, {http.CONNECTION_LIMIT} connections at once",
            "the connection is closed",
        ),
    ),
    "The SDK": (
        (
            "time-out of a call, all its tries included",
            f"{_time(sdk.TIMEOUT_S)} unless another is given",
            "`DeadlineError`",
        ),
        ("the longest time-out that can be given", _time(sdk._LONGEST_TIMEOUT_S), "`InvalidArgumentError`"),
        ("message, either way", _size(connections.MESSAGE_LIMIT), "`OverloadedError`"),
        (
            "one attempt to connect",
            _time(connections._DEFAULTS["grpc.min_reconnect_backoff_ms"] / 1000),
            "it is tried again",
        ),
    ),
    "The cluster": (
        ("keepers", f"2 to {reshare_plan.MAX_KEEPERS}", f"{_INVALID}, or refused at the start"),
        ("shard threshold", f"{reshare_plan.MIN_THRESHOLD} to the number of keepers", _INVALID),
        ("recovery shares", f"1 of 1, or 2 to {MAX_SHARES} of 2 to {MAX_SHARES}", _INVALID),
        (
            "replacements of the root key in the life of a cluster",
            f"{MAX_LINKS:,}, of which {SPARE_LINKS} are kept for emergencies and older stores",
            code("CHAIN_FULL"),
        ),
        ("reason that a person gives", f"{seal.MAX_REASON} printable characters", _INVALID),
        ("unseal session", _time(unseal.SESSION_S), "it ends, and a new one begins"),
        ("sealing keys of one caller in a session", f"{unseal.KEYS_PER_CALLER}", "the oldest ends"),
        ("callers excluded from a session", f"{unseal.MAX_EXCLUDED}", f"{_OVERLOADED}: reset it"),
        ("lines of the audit in one answer", f"{audit.MAX_LINES:,}, or {_size(reader.MAX_PAGE)}", _INVALID),
        ("wait for a line of the audit", _time(audit.MAX_WAIT_S), _INVALID),
        ("rows of the quarantine in one answer", f"{root._MAX_PAGE:,}", _INVALID),
        ("rows that one page of `ListImpact` reads", f"{impact.ROWS_AT_ONCE:,}", "the page is shorter"),
    ),
}
