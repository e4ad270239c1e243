"""When a call that failed is made again. Rules:

1. Failures that pass by themselves are repeated: of the transport (no reason), of a nexus that recovers its key or
   waits for its own SVID, of a store that is unavailable, of files that could not be scrubbed yet. A commit with an
   unknown outcome too, since the request id makes a repeated change the same change.
2. A sealed nexus is not asked again: only custodians can bring it back.
3. What no repetition within the deadline can change is raised at once: a certificate that this side refuses, a server
   without TLS, a name that does not exist. A refused connection is repeated, for a nexus may be starting, and so is one
   that breaks during the handshake: a server that refuses this SVID looks like one that is stopping.
4. The waits between tries grow, with full jitter, and no try begins after the deadline. A call that failed before is
   not said to have taken too long: what it failed with is said.
"""

import random
from time import monotonic

from shardhold._errors import Error, UnavailableError, from_rpc
from shardhold._quiet import grpc

RETRIED_REASONS = frozenset(
    {"", "NEXUS_RECOVERING", "IDENTITY_UNAVAILABLE", "STORE_UNAVAILABLE", "OUTCOME_UNKNOWN", "NOT_SCRUBBED"}
)

_RETRIED_CODES = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})  # the latter: by the server

# Words of gRPC, c-ares and BoringSSL, in lower case (rule 3).
_LASTING = (
    "certificate_verify_failed",
    "hostname verification",
    "wrong_version_number",
    "domain name not found",
    "returned answer with no data",
    "name or service not known",
)
# A server whose SVID has expired may get a new one, and clocks are set.
_PASSING = ("certificate has expired", "certificate is not yet valid")

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
_SHORTEST_TRY_S = 0.001


class Tries:
    """The tries of one call: how long the next may take, and whether there is one."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = monotonic() + timeout_s
        self._longest_wait_s = _FIRST_WAIT_S
        self._repeated: Exception | None = None

    def left(self) -> float:
        """Return the seconds that the next try may take, always above 0."""
        return max(self._deadline - monotonic(), _SHORTEST_TRY_S)

    def wait_after(self, failure: Exception) -> float | None:
        """Return the seconds to wait after *failure*; None: the call has failed."""
        if not (isinstance(failure, grpc.RpcError) and _may_pass(from_rpc(failure))):
            return None
        self._repeated = failure
        wait = random.uniform(0, self._longest_wait_s)  # noqa: S311 — spreads clients, protects nothing
        self._longest_wait_s = min(2 * self._longest_wait_s, _LONGEST_WAIT_S)
        return wait if monotonic() + wait < self._deadline else None

    def choose(self, failure: Exception) -> Exception:
        """Return what the call failed with: a try that was cut off by the deadline says less than the one before."""
        is_cut_off = isinstance(failure, grpc.RpcError) and failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return self._repeated if is_cut_off and self._repeated is not None else failure


def _may_pass(error: Error) -> bool:
    if not isinstance(error, UnavailableError) or error.code not in _RETRIED_CODES:
        return False
    if error.reason not in RETRIED_REASONS:
        return False
    said = "" if error.reason else error.message.lower()
    return any(words in said for words in _PASSING) or not any(words in said for words in _LASTING)
