"""Initialising a cluster, step by step, and what holds when a step fails.

1. begin: the recovery key is made here; the nexus gets its public key and salted hashes of the shares, makes a root key
   and seals a challenge. The seed is wiped.
2. hand out: each custodian gets a share card.
3. prove: a threshold of shares is read back, and only what was read back opens the challenge.
4. confirm: the answer makes the nexus commit. Sending it again does no harm.

If anything fails before the commit, the attempt is void: the shares open nothing and the cards are to be destroyed.
After the commit the cards are the real ones. When the answer to step 4 is lost, the nexus's state tells which of the
two it is; until that is known, the cards are kept.
"""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from common.clock import Clock
from common.errors import DecryptionError, WordsError
from common.keys.protected import wipe_bytes
from common.keys.recovery_key import ShareHash, challenge_info, derive_public_key, hash_share, open_sealed
from common.keys.words import SEED_SIZE, combine, encode_share, split
from pilot.custody.card import Card
from pilot.custody.hand_out import Custodians, ShareCheck
from pilot.errors import INTERRUPTED, UNAVAILABLE, PilotError, describe
from shardhold._errors import DeadlineError, Error, UnavailableError, WrongStateError

CONFIRM_PATIENCE_S = 30.0  # how long an unanswered confirmation is repeated
_REPEAT_AFTER_S = 0.5
BEFORE_COMMIT = ("uninitialised", "initialising")

# What may end a step, from outside or inside; anything else is a bug in pilot.
_FAILURES = (KeyboardInterrupt, EOFError, OSError, PilotError, WordsError, DecryptionError, Error)


@dataclass(frozen=True, slots=True)
class InitPlan:
    keeper_threshold: int  # 0: the nexus decides, more than half
    recovery_threshold: int
    recovery_shares: int


@dataclass(frozen=True, slots=True)
class Begun:
    attempt: int
    cluster_id: bytes
    genesis: bytes
    challenge: bytes
    voided_attempt: int  # 0: none


@dataclass(frozen=True, slots=True)
class State:
    """What GetStatus says about the cluster."""

    name: str
    genesis: bytes  # empty: not known


@dataclass(frozen=True, slots=True)
class Initialised:
    begun: Begun
    keepers_filled: int | None  # None: the answer was lost, and the state showed the commit
    keepers_wanted: int | None


class Nexus(Protocol):
    """The calls of an init. All raise the SDK's `Error`."""

    def begin(self, plan: InitPlan, public_key: bytes, hashes: list[ShareHash]) -> Begun: ...

    def confirm(self, attempt: int, answer: bytes) -> tuple[int, int]:
        """Return keepers filled and wanted."""
        ...

    def abort(self, attempt: int) -> None: ...

    def load_state(self) -> State: ...


class Ceremony:
    """One attempt to initialise a cluster."""

    def __init__(
        self,
        nexus: Nexus,
        custodians: Custodians,
        *,
        clock: Clock,
        say: Callable[[str], None],
        patience: float = CONFIRM_PATIENCE_S,
    ) -> None:
        self._nexus = nexus
        self._custodians = custodians
        self._clock = clock
        self._say = say
        self._patience = patience

    def run(self, plan: InitPlan) -> Initialised:
        """Initialise the cluster.

        Raises:
            PilotError: It says which state the cluster is in now, and which cards to destroy or to keep.
        """
        self._custodians.prepare()
        try:
            begun, shares, hashes = self._begin(plan)
        except BaseException:
            self._custodians.discard()
            raise
        try:
            if begun.voided_attempt:
                self._say(f"attempt {begun.voided_attempt} is void: its share cards open nothing, destroy them")
            answer = self._prove(plan, begun, shares, hashes)
        except _FAILURES as exc:
            raise self._abandon(begun, exc) from exc
        return self._confirm(begun, answer)

    def _begin(self, plan: InitPlan) -> tuple[Begun, list[str], list[ShareHash]]:
        seed = os.urandom(SEED_SIZE)
        try:
            shares = split(seed, plan.recovery_threshold, plan.recovery_shares)
            public_key = derive_public_key(seed)
        finally:
            wipe_bytes(seed)  # from here on only the shares can open anything
        hashes = [hash_share(encode_share(share)) for share in shares]
        try:
            return self._nexus.begin(plan, public_key, hashes), shares, hashes
        except (UnavailableError, DeadlineError, KeyboardInterrupt) as exc:
            state = "this attempt initialised nothing and handed out no share: run 'pilot init' again"
            raise _explain(exc, state) from exc
        except WrongStateError as exc:
            state = "init needs an empty store, and keepers that serve no cluster yet; nothing was changed"
            raise _explain(exc, state) from exc

    def _prove(self, plan: InitPlan, begun: Begun, shares: list[str], hashes: list[ShareHash]) -> bytes:
        cards = [
            Card(
                number=number,
                count=plan.recovery_shares,
                threshold=plan.recovery_threshold,
                words=words,
                cluster_id=begun.cluster_id,
                genesis=begun.genesis,
                attempt=begun.attempt,
                made_on=self._clock.now().date(),
            )
            for number, words in enumerate(shares, start=1)
        ]
        self._custodians.hand_out(cards)
        # The proof must rely on nothing but what is read back.
        cards.clear()
        shares.clear()
        read_back = self._custodians.read_back(ShareCheck(hashes, threshold=plan.recovery_threshold))
        seed = combine(read_back)
        try:
            return open_sealed(begun.challenge, seed, challenge_info(begun.cluster_id, begun.attempt, begun.genesis))
        finally:
            wipe_bytes(seed)

    def _confirm(self, begun: Begun, answer: bytes) -> Initialised:
        give_up_at = self._clock.monotonic() + self._patience
        try:
            while True:
                try:
                    filled, wanted = self._nexus.confirm(begun.attempt, answer)
                    return Initialised(begun, filled, wanted)
                except (UnavailableError, DeadlineError):
                    if self._clock.monotonic() >= give_up_at:
                        raise
                self._clock.wait(threading.Event(), _REPEAT_AFTER_S)
        except (KeyboardInterrupt, Error) as exc:
            return self._settle(begun, exc)

    def _settle(self, begun: Begun, failure: BaseException) -> Initialised:
        """Find out whether the commit happened, after a confirmation that failed or was interrupted.

        The nexus runs one init call at a time: once it has refused to abort, no confirmation is in progress, and the
        state it then reports is final.
        """
        is_final = False
        while True:
            try:
                state = self._nexus.load_state()
                if state.genesis == begun.genesis:
                    return Initialised(begun, None, None)
                if state.genesis:
                    raise self._void(failure, f"attempt {begun.attempt} is void: another one made the cluster")
                if state.name not in BEFORE_COMMIT:
                    break  # there is a cluster, and until it has recovered it does not show whose
                if is_final:
                    raise self._void(failure, f"attempt {begun.attempt} is void, the cluster is not initialised")
                self._nexus.abort(begun.attempt)
                raise self._void(failure, f"attempt {begun.attempt} is void, the cluster is not initialised")
            except WrongStateError:
                if is_final:
                    break
                is_final = True
            except (Error, KeyboardInterrupt):
                break
        genesis = begun.genesis.hex()
        raise _explain(
            failure,
            "it is not known yet whether the cluster is initialised: keep all share cards",
            f"if 'pilot status' shows the genesis {genesis[:4]} {genesis[4:8]} …, it is, and the cards are real",
            "if it shows another genesis, or the state uninitialised or initialising, destroy the cards of attempt "
            f"{begun.attempt}; if it shows no genesis, run 'pilot init' again",
            exit_code=UNAVAILABLE,
        ) from failure

    def _abandon(self, begun: Begun, failure: BaseException) -> PilotError:
        """Void an attempt whose confirmation was never sent; return what to say."""
        try:
            self._nexus.abort(begun.attempt)
            state = f"attempt {begun.attempt} is void, the cluster is not initialised"
        except WrongStateError:
            state = f"attempt {begun.attempt} was already void"
        except (Error, KeyboardInterrupt):
            state = (
                f"attempt {begun.attempt} was not proved and will not become a cluster; the nexus does not answer now, "
                "the next 'pilot init' voids the attempt"
            )
        return self._void(failure, state)

    def _void(self, failure: BaseException, state: str) -> PilotError:
        return _explain(failure, state, *self._custodians.discard())


def _explain(failure: BaseException, *hints: str, exit_code: int | None = None) -> PilotError:
    """Return an error that says what happened, and then what is true now."""
    known = describe(failure) if isinstance(failure, Error) else failure
    if isinstance(known, PilotError):
        exit_code = exit_code or known.exit_code
        return PilotError(str(known), *hints, *known.hints, exit_code=exit_code, reason=known.reason)
    if isinstance(failure, KeyboardInterrupt | EOFError):
        return PilotError("interrupted", *hints, exit_code=INTERRUPTED)
    return PilotError(str(failure), *hints, exit_code=exit_code or 1)
