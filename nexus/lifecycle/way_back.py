"""Whether custodians could bring this cluster back: what an unseal needs of the store verifies.

A nexus serves without the escrow and the recovery key, so damage to them is felt only when it is too late. While ready
it is therefore looked for: at once, and then every minute. It is an alarm, which takes readiness from nobody.
"""

import structlog

from common.clock import Clock
from common.errors import ChainError, CorruptRowError
from nexus.keys import manifest, records
from nexus.keys.escrow import find_custodians_copy
from nexus.keys.keyed_read import read_with_key
from nexus.keys.lineage import read_chain
from nexus.keys.opened import renew
from nexus.keys.root_key import RootKey
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.store.protocol import Reader, Store

CHECK_S = 60.0  # between two looks

log = structlog.get_logger("warden")


class WayBack:
    """Looked at by one thread; `fault` may be read by any."""

    def __init__(self, store: Store, lifecycle: Lifecycle, clock: Clock) -> None:
        self._store = store
        self._lifecycle = lifecycle
        self._clock = clock
        self._next_at = 0.0  # of the monotonic clock
        self._fault = ""

    @property
    def fault(self) -> str:
        """What is wrong with it, as it was found last; empty: nothing."""
        return self._fault

    def look_now(self) -> None:
        """Let the next `look` look, whenever the last one was."""
        self._next_at = 0.0

    def look(self) -> None:
        """Look when it is time to, and say what has changed.

        Raises:
            StoreUnavailableError: The store cannot be read; `fault` stays as it was.
            SealedError, RecoveringError: The nexus is not ready any more.
        """
        if self._clock.monotonic() < self._next_at:
            return
        fault = self._find_fault()
        self._next_at = self._clock.monotonic() + CHECK_S
        if fault != self._fault:
            self._fault = fault
            if fault:
                log.critical("way back is broken", why=fault)
            else:
                log.info("way back is whole again")

    def _find_fault(self) -> str:
        try:
            with self._lifecycle.borrow() as serving:
                read_with_key(self._store, serving, _check)
        except (CorruptRowError, ChainError) as exc:
            return (
                f"custodians could not bring this cluster back: {exc}; put the row back from a backup before the nexus "
                "ends"
            )
        return ""


def _check(reader: Reader, root_key: RootKey) -> None:
    """See that the rows have what custodians need; raises CorruptRowError or ChainError."""
    verified = manifest.verify(reader.load_meta(), reader.load_controls(), root_key)
    controls = renew(verified, root_key.generation)
    controls.need(*records.GENESIS)
    recovery = records.decode(records.RecoveryKeyRecord, controls.need(*records.RECOVERY_KEY))
    escrow = records.decode(records.EscrowRecord, controls.need(records.ESCROW, str(root_key.generation)))
    find_custodians_copy(read_chain(verified.bodies, verified.listed), recovery, escrow)
