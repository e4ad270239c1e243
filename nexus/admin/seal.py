"""Shut the door, and accept an older store: what an administrator tells the warden, authorised and audited."""

from common.errors import InvalidArgumentError
from nexus.access.gate import Caller, Gate
from nexus.access.roles import Role
from nexus.lifecycle.sealing import Emptied
from nexus.lifecycle.warden import Warden

MAX_REASON = 256  # characters

_SEALERS = frozenset({Role.SUPERUSER, Role.OPERATOR})
_ACCEPTERS = frozenset({Role.SUPERUSER})


class SealDesk:
    """Thread-safe."""

    def __init__(self, gate: Gate, warden: Warden) -> None:
        self._gate = gate
        self._warden = warden

    def seal(self, caller: Caller, reason: str, *, seconds: float) -> Emptied:
        """Seal the nexus, and wait at most *seconds* for the keepers to be empty.

        Raises:
            InvalidArgumentError: The reason is too long, or not printable.
            StoreUnavailableError: The seal is not committed; everything is wiped all the same.
        """
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise InvalidArgumentError(
                f"reason: got {len(reason)} characters, want at most {MAX_REASON} printable ones"
            )
        with self._gate.role_call("Seal", caller, "seal", _SEALERS, reserve=True) as grant:
            grant.detail = reason
            return self._warden.seal(
                lambda writer: writer.append_audit(self._gate.change_entry(grant)), seconds=seconds
            )

    def accept_older_store(self, caller: Caller, timeline: int, revision: int) -> int:
        """Accept the store at *timeline* and *revision*, older than a mark says; return the timeline that begins.

        Raises:
            WrongStateError: Nothing blocks, or there is no root key yet.
            ConflictError: The store is at another position.
        """
        with self._gate.role_call("AcceptOlderStore", caller, "store.accept-older", _ACCEPTERS) as grant:
            grant.detail = f"timeline {timeline} revision {revision}"
            return self._warden.accept(
                timeline, revision, lambda writer: writer.append_audit(self._gate.change_entry(grant))
            )
