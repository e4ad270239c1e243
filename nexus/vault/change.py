"""One change to a secret: made once for its request, with the keys of the moment, and audited as part of it.

1. A change that was made with keys that are not those of the store any more is undone, and made anew.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from common.clock import Clock, to_micros
from common.errors import RecoveringError
from nexus.access.gate import CallRecord, Gate
from nexus.keys.floor import Floor
from nexus.keys.opened import Serving
from nexus.store.protocol import MadeByRequest, Store, Writer
from nexus.vault.requests import Request

_MOST_FLIPS: Final = 3  # that a change begins anew after


@dataclass(frozen=True, slots=True)
class SecretChange:
    """What a step has in hand."""

    writer: Writer
    serving: Serving
    record: CallRecord
    at: int  # microseconds since 1970

    @property
    def path(self) -> str:
        """The path of the secret."""
        return self.record.path

    @property
    def caller(self) -> str:
        """The SPIFFE ID of the caller."""
        return self.record.caller.spiffe_id


Step = Callable[[SecretChange], MadeByRequest]


class _AlreadyMadeError(Exception):
    """Undoes a change whose request made its change before."""

    def __init__(self, made: MadeByRequest) -> None:
        self.made = made


class _KeysReplacedError(Exception):
    """Undoes a change that was made with keys that are not current any more."""


class SecretChanges:
    """Thread-safe."""

    def __init__(self, store: Store, gate: Gate, clock: Clock) -> None:
        self._store = store
        self._gate = gate
        self._clock = clock

    def make(self, record: CallRecord, request: Request, step: Step) -> MadeByRequest:
        """Make the change of *step*, or return what *request* made when it was sent before."""
        for _ in range(_MOST_FLIPS):
            with contextlib.suppress(_KeysReplacedError):  # rule 1
                return self._try(record, request, step)
        raise RecoveringError(f"the keys of this change were replaced {_MOST_FLIPS} times while it was made")

    def _try(self, record: CallRecord, request: Request, step: Step) -> MadeByRequest:
        floors: list[Floor] = []

        def change(writer: Writer) -> MadeByRequest:
            # Asked here, not at the gate: a change waits for its turn, and uses the keys that are current by then.
            serving = self._gate.require_serving()
            serving.floor.check_basis(writer.basis)
            check_current(serving.root_key.generation, writer.basis.generation)
            floors.append(serving.floor)
            now = to_micros(self._clock.now())
            try:
                if (before := request.find_made(writer, serving.root_key)) is not None:
                    raise _AlreadyMadeError(before)
                made = step(SecretChange(writer, serving, record, now))
                request.save(writer, serving.root_key, made, made_at=now)
                record.version = made.versions[-1]
                record.write(writer, serving.root_key)
            finally:  # keys that may be wiped by now have proved nothing, not even that this is another request
                self._gate.check_still(serving)
            return made

        try:
            made = self._store.write(change)
            floors[0].reach(made.revision)
            return made
        except _AlreadyMadeError as again:
            record.detail = "repeated request"
            return again.made


def check_current(used: int, current: int) -> None:
    """Check that a change uses the key that its basis names; 0: an older program left the store, and it names none."""
    if current not in (0, used):
        raise _KeysReplacedError
