"""Bring a cluster into being, in two phases that `pilot init` drives.

- BeginInit commits the phase *initialising* first, with the cluster id that all later attempts reuse and numbers that
  are never used again; only then is a root key made, in memory.
- ConfirmInit brings the opened challenge, which proves that a threshold of recovery shares was read back. One change
  then commits everything. Shards are sent afterwards, by the refill that keepers get at any other time.
- Whatever happens before that change (a crash, an abort, a new attempt) voids the attempt: its recovery shares open
  nothing.
- A store that holds anything, or was initialised once, never gets a new root key. The same holds while its keepers
  serve a cluster: the store of that cluster is missing, and may be put back.
"""

import contextlib
import hmac
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog

from common.clock import to_micros
from common.errors import InvalidArgumentError, WrongStateError
from common.forms.genesis import Genesis
from common.keys.opener import seal_escrow
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import ShareHash, challenge_info, check_public_key, escrow_info, seal
from common.keys.words import check_counts
from nexus.access import calls
from nexus.access.gate import Caller, CallRecord, Gate
from nexus.keepers.pool import KeeperPool
from nexus.keys import manifest, records
from nexus.keys.audit_chain import encode_chain, make_chain_record
from nexus.keys.first_rows import FIRST_KEK, FIRST_TIMELINE, make_first_rows, make_genesis
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.opened import Serving, prove
from nexus.keys.root_key import ROOT_KEY_SIZE, RootKey
from nexus.keys.shard_set import draw_set
from nexus.lifecycle.audit_guard import AuditFiles
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.policy.rules import Policy
from nexus.store.protocol import Meta, Phase, Store, Writer

CHALLENGE_SIZE = 32

_HEARD_S = 3.0  # by then a nexus that has just started has asked each keeper once

log = structlog.get_logger("init")


@dataclass(frozen=True, slots=True)
class InitPlan:
    """What an administrator asks for."""

    shard_threshold: int  # 0: more than half of the keepers
    recovery: records.RecoveryKeyRecord


@dataclass(frozen=True, slots=True)
class StartedAttempt:
    """What `pilot init` goes on with."""

    attempt: int
    cluster_id: bytes
    genesis: bytes  # 32 bytes
    challenge: bytes  # sealed to the recovery public key


@dataclass(frozen=True, slots=True)
class Confirmed:
    keepers_filled: int
    keepers_wanted: int


@dataclass(slots=True)
class _Attempt:
    """An attempt in memory, void when the process ends."""

    number: int
    threshold: int
    set_number: int
    recovery: records.RecoveryKeyRecord
    root_key: RootKey
    genesis: Genesis
    escrow: bytes
    answer: bytes  # says nothing about any key


class Initialisation:
    """Thread-safe: one phase at a time."""

    def __init__(
        self,
        *,
        store: Store,
        gate: Gate,
        lifecycle: Lifecycle,
        warden: Warden,
        pool: KeeperPool,
        memory: ProtectedMemory,
        first_policy: Policy,
        pin: GenesisPin,
        audit_files: AuditFiles,
    ) -> None:
        self._store = store
        self._gate = gate
        self._lifecycle = lifecycle
        self._warden = warden
        self._pool = pool
        self._memory = memory
        self._first_policy = first_policy
        self._pin = pin
        self._audit_files = audit_files
        self._attempt: _Attempt | None = None
        self._confirmed: tuple[int, bytes] | None = None  # attempt and answer that made this cluster
        self._lock = threading.Lock()

    @property
    def step(self) -> str | None:
        """Say where the attempt in memory stands, None when there is none."""
        attempt = self._attempt
        return None if attempt is None else f"attempt {attempt.number} waits for its proof"

    def begin(self, caller: Caller, plan: InitPlan) -> StartedAttempt:
        """Start an attempt; the previous one becomes void.

        Raises:
            InvalidArgumentError: A threshold, the public key or a share hash.
            WrongStateError: The store is initialised or holds something, keepers serve a cluster, or the configuration
                names the one cluster that may be served.
        """
        with self._gate.role_call(calls.BEGIN_INIT, caller) as record, self._lock:
            threshold = self._check_plan(plan)
            self._pin.check_new()
            self._pool.wait_heard(seconds=_HEARD_S)
            meta = self._store.write(self._allocate)
            record.detail = f"attempt {meta.last_init_attempt}"
            self._void()
            self._lifecycle.enter(State.INITIALISING)
            attempt = self._attempt = self._make(meta, plan, threshold)
            info = challenge_info(meta.cluster_id, attempt.number, attempt.genesis.fingerprint)
            challenge = seal(attempt.answer, plan.recovery.public_key, info)
            return StartedAttempt(attempt.number, meta.cluster_id, attempt.genesis.fingerprint, challenge)

    def confirm(self, caller: Caller, number: int, answer: bytes, *, seconds: float) -> Confirmed:
        """Commit the attempt, and wait at most *seconds* for its quorum of keepers. A repeated call is harmless.

        Raises:
            InvalidArgumentError: The answer is wrong; the attempt stays.
            WrongStateError: The attempt is void; or keepers serve a cluster, and the attempt stays.
        """
        with self._gate.role_call(calls.CONFIRM_INIT, caller) as record, self._lock:
            if not self._was_confirmed(number, answer):
                self._commit(self._open_attempt(number), answer, record)
        wanted = self._lifecycle.require_serving().shard_set.record.quorum
        return Confirmed(self._pool.wait_holders(wanted, seconds=seconds), wanted)

    def abort(self, caller: Caller, number: int) -> None:
        """Void the attempt.

        Raises:
            WrongStateError: It is void already.
        """
        with self._gate.role_call(calls.ABORT_INIT, caller) as record, self._lock:
            self._open_attempt(number)
            record.detail = f"attempt {number}"
            self._void()

    def _check_plan(self, plan: InitPlan) -> int:
        keepers = len(self._pool.seats)
        threshold = plan.shard_threshold or keepers // 2 + 1
        if not 2 <= threshold <= keepers:
            raise InvalidArgumentError(f"shard_threshold: got {threshold}, want 2 to {keepers}, the number of keepers")
        check_counts(plan.recovery.threshold, len(plan.recovery.shares))
        check_public_key(plan.recovery.public_key)
        return threshold

    def _allocate(self, writer: Writer) -> Meta:
        meta = writer.load_meta()
        if meta.phase is Phase.INITIALISED:
            raise WrongStateError("the store is initialised already")
        if not writer.is_empty():
            raise WrongStateError("the store is not empty: it never gets a new root key")
        self._check_keepers()
        meta = replace(
            meta,
            phase=Phase.INITIALISING,
            cluster_id=meta.cluster_id or os.urandom(16),
            last_init_attempt=meta.last_init_attempt + 1,
            last_generation=meta.last_generation + 1,
            last_set_number=meta.last_set_number + 1,
        )
        writer.save_meta(meta)
        return meta

    def _check_keepers(self) -> None:
        if serving := self._pool.describe_serving():
            raise WrongStateError(
                f"{serving}: put the store of that cluster back; or start these keepers anew, if it is to be forgotten"
            )

    def _make(self, meta: Meta, plan: InitPlan, threshold: int) -> _Attempt:
        key = self._memory.allocate(ROOT_KEY_SIZE)
        key.fill_random()
        root_key = RootKey(key, cluster_id=meta.cluster_id, generation=meta.last_generation, memory=self._memory)
        public_key = plan.recovery.public_key
        try:
            escrow = seal_escrow(root_key.view, public_key, escrow_info(meta.cluster_id, root_key.generation))
        except BaseException:
            root_key.release()
            raise
        genesis = make_genesis(root_key, public_key, escrow)
        return _Attempt(
            number=meta.last_init_attempt,
            threshold=threshold,
            set_number=meta.last_set_number,
            recovery=plan.recovery,
            root_key=root_key,
            genesis=genesis,
            escrow=escrow,
            answer=os.urandom(CHALLENGE_SIZE),
        )

    def _commit(self, attempt: _Attempt, answer: bytes, record: CallRecord) -> None:
        if not hmac.compare_digest(attempt.answer, answer):
            raise InvalidArgumentError(
                "answer: does not match the challenge: the shares read back are not of this attempt"
            )
        record.detail = f"attempt {attempt.number}"
        proven: list[Serving] = []
        try:
            self._store.write(lambda writer: proven.append(self._write(writer, attempt, record)))
        except BaseException:
            for serving in proven:
                serving.release()
            raise
        self._confirmed = (attempt.number, answer)
        self._attempt = None
        attempt.root_key.release()
        self._warden.begin_serving(proven[0])
        log.info("cluster initialised", attempt=attempt.number, genesis=attempt.genesis.fingerprint.hex())

    def _write(self, writer: Writer, attempt: _Attempt, record: CallRecord) -> Serving:
        """Write all that makes a cluster, and open it the way every recovery will, before it is committed."""
        meta = writer.load_meta()
        if meta.phase is not Phase.INITIALISING or meta.last_init_attempt != attempt.number or not writer.is_empty():
            raise WrongStateError("the store is not as this attempt left it: it never gets a new root key")
        self._check_keepers()
        meta = replace(meta, phase=Phase.INITIALISED, timeline=FIRST_TIMELINE, last_kek_id=FIRST_KEK, sealed=False)
        meta = replace(meta, epoch=meta.epoch + 1, kek_id=FIRST_KEK)
        shard_set, points = draw_set(
            attempt.root_key.view,
            [seat.member for seat in self._pool.seats],
            threshold=attempt.threshold,
            generation=attempt.root_key.generation,
            set_number=attempt.set_number,
            timeline=FIRST_TIMELINE,
            cluster_id=meta.cluster_id,
            memory=self._memory,
            drawn_at=to_micros(record.clock.now()),
        )
        with contextlib.ExitStack() as on_failure:
            for point in points:
                on_failure.callback(point.release)
            bodies = make_first_rows(
                attempt.root_key,
                attempt.genesis,
                attempt.escrow,
                attempt.recovery,
                shard_set,
                [self._first_policy],
                self._memory,
                now=record.clock.now(),
                actor=record.caller.spiffe_id,
            )
            bodies |= encode_chain(self._audit_files.nexus, make_chain_record(meta.position))
            writer.save_meta(manifest.first_manifest(meta, bodies, attempt.root_key, writer))
            record.write(writer, attempt.root_key)
            self._audit_files.begin(writer, attempt.root_key)
            meta, rows = replace(writer.load_meta(), revision=writer.revision), writer.load_controls()
            candidate = self._memory.allocate(ROOT_KEY_SIZE)
            candidate.view[:] = attempt.root_key.view
            on_failure.pop_all()
        return prove(candidate, points, meta=meta, rows=rows, memory=self._memory)

    def _open_attempt(self, number: int) -> _Attempt:
        if self._attempt is None or self._attempt.number != number:
            raise WrongStateError(
                f"attempt {number} is void: destroy its recovery shares, they open nothing, and begin again"
            )
        return self._attempt

    def _was_confirmed(self, number: int, answer: bytes) -> bool:
        if self._confirmed is None and self._lifecycle.state is State.READY:
            raise WrongStateError(
                "the cluster is initialised already: when its genesis is that of this attempt, keep the recovery shares"
            )
        if self._confirmed is None:
            return False
        if self._confirmed[0] != number or not hmac.compare_digest(self._confirmed[1], answer):
            raise WrongStateError("the cluster is initialised already, by another attempt")
        return True

    def _void(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.root_key.release()
            log.warning("attempt void, destroy its recovery shares", attempt=attempt.number)


def make_recovery(public_key: bytes, threshold: int, hashes: Sequence[ShareHash]) -> records.RecoveryKeyRecord:
    """Put what pilot sent into the record that is stored.

    Raises:
        InvalidArgumentError: A salt or digest of the wrong size.
    """
    for number, share in enumerate(hashes, start=1):
        if len(share.salt) != 16 or len(share.digest) != 32:
            raise InvalidArgumentError(
                f"share_hashes[{number}]: got {len(share.salt)} and {len(share.digest)} bytes, "
                "want a salt of 16 and a digest of 32"
            )
    shares = tuple(records.ShareHashRecord(share.salt, share.digest) for share in hashes)
    return records.RecoveryKeyRecord(public_key, threshold, shares)
