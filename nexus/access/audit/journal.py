"""What the nexus says of itself in the audit: what it does without a caller, and that it is ready."""

import contextlib

from common.clock import Clock, to_micros
from common.errors import AuditUnavailableError, ShardholdError
from common.forms.audit.entry import Entry
from nexus.access.audit.log import AuditLog
from nexus.keys.opened import Serving
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.store.protocol import Store


class Journal:
    """Thread-safe."""

    def __init__(self, store: Store, audit: AuditLog, clock: Clock) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock

    def note(self, action: str, keeper: str, detail: str) -> None:
        """Write what the nexus does by itself. It goes on when that fails: the audit says so in every other way."""
        self._write(action, keeper, detail, reserve=True)

    def note_keeper(self, action: str, keeper: str, detail: str) -> None:
        """Write what was done with a keeper, never from the reserve, which keepers could use up."""
        self._write(action, keeper, detail, reserve=False)

    def follow(self, state: State, lifecycle: Lifecycle) -> None:
        """Go with *lifecycle* into *state*: when ready, sign in the store's timeline; otherwise sign no more.

        Raises:
            SealedError, RecoveringError, WrongStateError: *lifecycle* is not ready any more.
        """
        if state is not State.READY:
            self._audit.set_signer(None)  # its key is about to be wiped
            return
        root = lifecycle.require_serving().root
        with contextlib.suppress(ShardholdError):  # the earlier chain then goes on until the next start
            self._audit.start_timeline(self._load_timeline())
        self._audit.set_signer(root.root_key, root.chain.records)
        self.note("nexus.ready", "", f"generation {root.root_key.generation}")

    def follow_key(self, serving: Serving) -> None:
        """Sign with the root key of now, which has just followed another one. The entry of that change says the rest.

        Waits for no disk: the key before is wiped after it. If a process dies before, the next one that is ready signs.
        """
        root = serving.root
        self._audit.replace_signer(root.root_key, root.chain.records)

    def _write(self, action: str, keeper: str, detail: str, *, reserve: bool) -> None:
        entry = Entry(at=to_micros(self._clock.now()), actor="", action=action, path=keeper, detail=detail)
        with contextlib.suppress(AuditUnavailableError):
            self._audit.append(entry, reserve=reserve)

    def _load_timeline(self) -> int:
        with self._store.read() as reader:
            return reader.load_meta().timeline
