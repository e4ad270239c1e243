"""Seal the nexus, and accept an older store: what an administrator tells the warden, authorised and audited."""

from common.errors import InvalidArgumentError
from nexus.access import calls
from nexus.access.gate import Caller, Gate
from nexus.lifecycle.sealing import Emptied
from nexus.lifecycle.warden import Warden

MAX_REASON = 256  # characters


def check_reason(reason: str) -> None:
    """Check what somebody gives as their reason; it may be empty.

    Raises:
        InvalidArgumentError: It is too long, or not printable.
    """
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise InvalidArgumentError(f"reason: got {len(reason)} characters, want at most {MAX_REASON} printable ones")


class Seal:
    """Thread-safe."""

    def __init__(self, gate: Gate, warden: Warden) -> None:
        self._gate = gate
        self._warden = warden

    def seal(self, caller: Caller, reason: str, *, seconds: float) -> Emptied:
        """Seal the nexus, and wait at most *seconds* for the keepers to be empty.

        Raises:
            InvalidArgumentError: The reason is too long, or not printable.
            StoreUnavailableError: The seal is not committed; every key is wiped all the same.
        """
        check_reason(reason)
        with self._gate.role_call(calls.SEAL, caller) as record:
            record.detail = reason
            return self._warden.seal(record.write, seconds=seconds)

    def accept_older_store(self, caller: Caller, timeline: int, revision: int) -> int:
        """Accept the store at *timeline* and *revision*, older than a mark says; return the timeline that begins.

        Raises:
            WrongStateError: Nothing blocks, or there is no root key yet.
            ConflictError: The store is at another position.
        """
        with self._gate.role_call(calls.ACCEPT_OLDER_STORE, caller) as record:
            record.detail = f"timeline {timeline} revision {revision}"
            return self._warden.accept(timeline, revision, record.write, actor=caller.spiffe_id)
