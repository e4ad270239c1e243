"""Unseal: custodians submit recovery shares, one by one, until the escrow of the root key opens.

- One session at a time, for 15 minutes and no longer than the state that it was opened in: it ends when keepers bring
  the nexus back, or when it is sealed. Its shares are in protected memory only, and wiped when it ends.
- A share comes sealed to a one-shot key that the nexus stated for this caller, and is bound to the session. It is
  checked alone, against the salted hash that was stored at init: a wrong one is refused, and the others are kept.
- Before the first share, recovery key and escrow have to match the chain of generations. Custodians compare the
  fingerprint of its genesis record with their cards, since the store that supplies it may be an attacker's. All three
  are read once, when the session begins, and each share is bound to the fingerprint that its custodian compared: one
  for other rows does not open.
- One caller cannot keep the others out: it has at most two open one-shot keys, and its oldest goes. An operator or
  superuser excludes a caller from the session, who then gets no key, submits nothing and does not reset it.
- Whoever started the session may reset it while nobody else has submitted a share; afterwards operators and superusers.
- With the last share that is needed, the opener opens the escrow, the key is proved, and the warden admits it. If any
  of this fails, that share is forgotten and may be submitted again.
"""

import os
import re
import threading
from dataclasses import dataclass, field

import structlog

from common.clock import Clock
from common.errors import (
    CorruptRowError,
    DecryptionError,
    DeniedError,
    InvalidArgumentError,
    OverloadedError,
    StatementError,
    WordsError,
    WrongStateError,
)
from common.forms.delivery import build_share_info
from common.forms.genesis import Genesis
from common.keys.opener import open_escrow
from common.keys.protected import ProtectedBuffer, ProtectedMemory
from common.keys.recovery_key import ShareHash, escrow_info
from common.keys.statement import SUBMIT_SHARE, SignedStatement, StatementDesk
from common.keys.words import WIRE_SIZE
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate, may_act_on
from nexus.admin.statement_signer import StatementSigner
from nexus.keys import manifest, records
from nexus.keys.escrow import find_custodians_copy, find_escrow
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.lineage import find_chain
from nexus.keys.opened import prove
from nexus.keys.root_key import ROOT_KEY_SIZE
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store

SESSION_S = 15 * 60.0
SESSION_ID_SIZE = 16
KEYS_PER_CALLER = 2  # one in use, and one more for who lost an answer
MAX_EXCLUDED = 64  # callers of one session
_MAX_KEYS = 256  # of all callers; an identity that may ask for one is a custodian's or an admin's
_SPIFFE_ID = re.compile(r"spiffe://[^/\s]+(/[^/\s]+)+")
_MAX_SPIFFE_ID = 2048  # bytes, as the standard says

log = structlog.get_logger("unseal")


@dataclass(frozen=True, slots=True)
class Material:
    """What the store holds for custodians. Its parts match each other; until there is a key, nothing proves them."""

    genesis: Genesis
    recovery: records.RecoveryKeyRecord
    escrow: bytes
    generation: int


@dataclass(slots=True)
class _Session:
    session_id: bytes
    started_by: str
    state: State
    ends_at: float  # of the monotonic clock
    material: Material
    shares: dict[int, ProtectedBuffer] = field(default_factory=dict)  # by custodian's number
    submitters: dict[int, str] = field(default_factory=dict)  # SPIFFE IDs, by custodian's number
    excluded: set[str] = field(default_factory=set)  # SPIFFE IDs

    @property
    def owner(self) -> str:
        """Whoever may reset it without a role over others; empty once the work of another would be lost with it."""
        is_alone = {self.started_by}.issuperset(self.submitters.values())
        return self.started_by if is_alone and self.started_by not in self.excluded else ""

    def keep(self, number: int, share: ProtectedBuffer, submitter: str) -> None:
        self.shares[number], self.submitters[number] = share, submitter

    def forget(self, number: int) -> None:
        self.shares.pop(number).release()
        del self.submitters[number]

    def wipe(self) -> int:
        """Forget the shares; return how many there were."""
        count = len(self.shares)
        for share in self.shares.values():
            share.release()
        self.shares.clear()
        self.submitters.clear()
        return count


@dataclass(frozen=True, slots=True)
class SessionView:
    """What a caller may know of the session."""

    session_id: bytes
    genesis: bytes  # 32 bytes, fingerprint of the record that it began with
    started_by: str  # empty: not for this caller
    expires_in: float  # seconds
    submitted: int
    needed: int
    excluded: tuple[str, ...] = ()  # SPIFFE IDs; without a role over others, a caller sees only their own


@dataclass(frozen=True, slots=True)
class Submitted:
    number: int
    submitted: int
    needed: int
    ready: bool


class Unseal:
    """Thread-safe: one call at a time."""

    def __init__(
        self,
        *,
        store: Store,
        gate: Gate,
        warden: Warden,
        memory: ProtectedMemory,
        clock: Clock,
        signer: StatementSigner,
        pin: GenesisPin,
    ) -> None:
        self._store = store
        self._gate = gate
        self._warden = warden
        self._memory = memory
        self._clock = clock
        self._signer = signer
        self._pin = pin
        self._desk = StatementDesk(clock, limit=_MAX_KEYS, per_audience=KEYS_PER_CALLER)
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def start(self, caller: Caller) -> SessionView:
        """Open the session.

        Raises:
            WrongStateError: One is open.
            CorruptRowError: Recovery key or escrow is not that of the genesis record, or this is another cluster's than
                the configured one.
        """
        with self._gate.role_call(calls.START_UNSEAL, caller), self._lock:
            self._expire()
            if self._session is not None:
                raise WrongStateError("a session is open: join it, or have it reset")
            state = self._gate.check_served(calls.START_UNSEAL)  # again: who held the lock may have brought it back
            self._session = _Session(
                session_id=os.urandom(SESSION_ID_SIZE),
                started_by=caller.spiffe_id,
                state=state,
                ends_at=self._clock.monotonic() + SESSION_S,
                material=self._load_material(),
            )
            return self._view(self._session, caller)

    def state_key(self, caller: Caller, session_id: bytes, nonce: bytes) -> SignedStatement:
        """State a one-shot key for one share of *caller*; of those that it has, the oldest may go.

        Raises:
            WrongStateError: No such session.
            DeniedError: The caller is excluded from it.
            InvalidArgumentError: The nonce has the wrong size.
        """
        with self._gate.role_call(calls.GET_SEALING_KEY, caller), self._lock:
            session = self._require_session(session_id, caller)
            return self._signer.state(
                self._desk,
                cluster_id=session.material.genesis.cluster_id,
                audience=caller.spiffe_id,
                purpose=SUBMIT_SHARE,
                nonce=nonce,
            )

    def submit(self, caller: Caller, session_id: bytes, statement_digest: bytes, sealed: bytes) -> Submitted:
        """Take one share; with the last one that is needed, bring the nexus back.

        Raises:
            WrongStateError: No such session, or this share was submitted before.
            DeniedError: The caller is excluded from the session.
            StatementError: The statement is unknown, used, too old, or was for another caller.
            WordsError: It is no share of this cluster's recovery key; the others are kept.
            DecryptionError, CorruptRowError, WrongRootKeyError: What the escrow held does not prove.
            StoreUnavailableError: The key is proved but not admitted; submit the last share again.
        """
        with self._gate.role_call(calls.SUBMIT_SHARE, caller) as record, self._lock:
            session = self._require_session(session_id, caller)
            share = self._open_share(caller, session, statement_digest, sealed)
            number = self._keep_share(caller, session, share)
            record.detail = f"share {number}"
            needed = session.material.recovery.threshold
            submitted = len(session.shares)
            if submitted < needed:
                return Submitted(number, submitted, needed, ready=False)
            try:
                ready = self._finish(session, record)
            except BaseException:
                session.forget(number)
                raise
            self._end()
            return Submitted(number, submitted, needed, ready)

    def describe(self, caller: Caller) -> tuple[Material, SessionView | None]:
        """Return what custodians compare and how the session stands, None when none is open."""
        with self._gate.role_call(calls.GET_PROGRESS, caller), self._lock:
            self._expire()
            if self._session is None:
                return self._load_material(), None
            return self._session.material, self._view(self._session, caller)

    def exclude(self, caller: Caller, session_id: bytes, spiffe_id: str) -> SessionView:
        """Exclude *spiffe_id* from the session, for as long as it lives, and forget its one-shot keys.

        A share that it submitted before is kept: it was checked, and is worth as much from whoever sends it.

        Raises:
            InvalidArgumentError: It is no SPIFFE ID.
            WrongStateError: No such session.
            OverloadedError: 64 callers are excluded from it already.
        """
        with self._gate.role_call(calls.EXCLUDE_SUBMITTER, caller) as record, self._lock:
            if len(spiffe_id) > _MAX_SPIFFE_ID or _SPIFFE_ID.fullmatch(spiffe_id) is None:
                raise InvalidArgumentError(f"spiffe_id: got {spiffe_id[:256]!r}, want one of at most 2048 bytes")
            record.detail = spiffe_id
            session = self._require_session(session_id)
            if len(session.excluded | {spiffe_id}) > MAX_EXCLUDED:
                raise OverloadedError(f"{MAX_EXCLUDED} callers are excluded from this session: reset it")
            session.excluded.add(spiffe_id)
            self._desk.withdraw(spiffe_id)
            return self._view(session, caller)

    def reset(self, caller: Caller, session_id: bytes) -> int:
        """End the session; return how many shares were forgotten.

        Raises:
            DeniedError: The role is not enough, and the caller did not start it or does not own it alone any more.
            WrongStateError: No such session.
        """
        with self._gate.role_call(calls.RESET_UNSEAL, caller) as record, self._lock:
            if self._session is not None:
                self._gate.check_owner(record, self._session.owner)
            session = self._require_session(session_id)
            forgotten = len(session.shares)
            self._end()
            return forgotten

    def count(self) -> tuple[int, int] | None:
        """Return the numbers of shares submitted and needed, None when no session is open."""
        session = self._session
        return None if session is None else (len(session.shares), session.material.recovery.threshold)

    def expire(self) -> None:
        """Forget what is too old. Never waits: the thread that calls this also ends the process."""
        if self._lock.acquire(blocking=False):
            try:
                self._expire()
                self._desk.expire()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Forget everything, at the end of the process."""
        with self._lock:
            self._end()

    def _expire(self) -> None:
        session = self._session
        if session is None:
            return
        if session.ends_at <= self._clock.monotonic():
            log.warning("unseal session expired", forgotten=len(session.shares))
        elif session.state is not self._gate.state:
            log.warning("unseal session ended", forgotten=len(session.shares), state=self._gate.state.value)
        else:
            return
        self._end()

    def _end(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.wipe()

    def _require_session(self, session_id: bytes, submitter: Caller | None = None) -> _Session:
        """Return the open session, in which *submitter* may take part."""
        self._expire()
        if self._session is None or self._session.session_id != session_id:
            raise WrongStateError("no such session is open: it ended, or was reset")
        if submitter is not None and submitter.spiffe_id in self._session.excluded:
            raise DeniedError(f"{submitter.spiffe_id} is not allowed: it was excluded from this session")
        return self._session

    def _open_share(self, caller: Caller, session: _Session, digest: bytes, sealed: bytes) -> ProtectedBuffer:
        statement, key = self._desk.take(digest)
        if (statement.audience, statement.purpose) != (caller.spiffe_id, SUBMIT_SHARE):
            key.forget()
            raise StatementError("statement is for another caller or purpose")
        share = self._memory.allocate(WIRE_SIZE)
        try:
            info = build_share_info(
                statement_digest=digest, session_id=session.session_id, genesis=session.material.genesis.fingerprint
            )
            key.open(sealed, info=info, into=share.view)
        except BaseException as exc:
            share.release()
            if isinstance(exc, DecryptionError):
                raise InvalidArgumentError("sealed_share does not open: changed, or sealed for something else") from exc
            raise
        return share

    def _keep_share(self, caller: Caller, session: _Session, share: ProtectedBuffer) -> int:
        try:
            number = _find_number(session.material.recovery, share)
            if number in session.shares:
                raise WrongStateError(f"share {number} was submitted before")
        except BaseException:
            share.release()
            raise
        session.keep(number, share, caller.spiffe_id)
        return number

    def _finish(self, session: _Session, record: CallRecord) -> bool:
        material = session.material
        candidate = self._memory.allocate(ROOT_KEY_SIZE)
        try:
            info = escrow_info(material.genesis.cluster_id, material.generation)
            shares = [share.view for share in session.shares.values()]
            open_escrow(shares, material.escrow, info, into=candidate.view)
            with self._store.read() as reader:
                meta, rows = reader.load_meta(), reader.load_controls()
        except BaseException:
            candidate.release()
            raise
        serving = prove(candidate, [], meta=meta, rows=rows, memory=self._memory)
        return self._warden.admit(serving, record.write, asked_in=session.state)

    def _load_material(self) -> Material:
        with self._store.read() as reader:
            self._pin.check(records.load_genesis(reader).fingerprint)
            recovery = records.decode(records.RecoveryKeyRecord, records.load_body(reader, *records.RECOVERY_KEY))
            rows = reader.load_controls()
        chain = find_chain(rows)
        generation = manifest.find_current_set(chain.genesis.cluster_id, rows).generation
        if generation != chain.generation:
            raise CorruptRowError(
                f"the chain leads to generation {chain.generation}, the current set is of {generation}"
            )
        copy = find_custodians_copy(chain, recovery, find_escrow(rows, generation))
        return Material(chain.genesis, recovery, copy.sealed, generation)

    def _view(self, session: _Session, caller: Caller) -> SessionView:
        may_know = may_act_on(calls.RESET_UNSEAL, caller, session.started_by)
        may_exclude = caller.role in calls.EXCLUDE_SUBMITTER.roles
        return SessionView(
            session_id=session.session_id,
            genesis=session.material.genesis.fingerprint,
            started_by=session.started_by if may_know else "",
            expires_in=max(0.0, session.ends_at - self._clock.monotonic()),
            submitted=len(session.shares),
            needed=session.material.recovery.threshold,
            excluded=tuple(sorted(session.excluded if may_exclude else session.excluded & {caller.spiffe_id})),
        )


def _find_number(recovery: records.RecoveryKeyRecord, share: ProtectedBuffer) -> int:
    for number, stored in enumerate(recovery.shares, start=1):
        if ShareHash(stored.salt, stored.digest).matches(share.view):
            return number
    raise WordsError("no share of this cluster's recovery key; what was submitted before is kept")
