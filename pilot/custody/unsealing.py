"""Guiding one custodian through an unseal, step by step.

1. The nexus says which cluster it is. Its genesis fingerprint is compared with the share card: by the custodian, or by
   pilot when the card itself was given. The nexus's database may be an attacker's; the card is not. If they differ,
   nothing is asked and nothing submitted.
2. The open session is joined, or one is opened. It must have the genesis that was compared: the database may have been
   changed meanwhile.
3. The custodian is asked for words until they are those of a share. They are submitted, sealed to that nexus and bound
   to that genesis. A share that the nexus refuses changes nothing: the custodian is asked again.
"""

from collections.abc import Callable
from typing import Protocol

from common.keys.words import RecoveryShare
from pilot.custody.card import GENESIS_SIZE
from pilot.custody.given_share import GivenShare
from pilot.custody.words_entry import ask_words
from pilot.errors import PilotError, describe
from pilot.terminal.output import group_hex
from pilot.terminal.terminal import Terminal
from shardhold._errors import DeadlineError, InvalidArgumentError, UnavailableError, WrongStateError
from shardhold.v1.recovery_pb2 import GetProgressResponse, SubmitShareResponse, UnsealSession

SERVED_IN = ("recovering", "sealed")


class Recovery(Protocol):
    """The calls of an unseal; `pilot.custody.unseal_calls` makes them. All raise the SDK's `Error`."""

    def load_state(self) -> str: ...

    def load_progress(self) -> GetProgressResponse: ...

    def start(self) -> UnsealSession: ...

    def submit(
        self, share: RecoveryShare, *, cluster_id: bytes, session_id: bytes, genesis: bytes
    ) -> SubmitShareResponse: ...


class Unsealing:
    """One custodian's part."""

    def __init__(self, recovery: Recovery, *, terminal: Terminal, say: Callable[[str], None]) -> None:
        self._recovery = recovery
        self._terminal = terminal
        self._say = say

    def run(self, given: GivenShare | None, *, genesis: bytes | None, starts: bool) -> SubmitShareResponse:
        """Take one share to the nexus.

        Args:
            given: The share, checked; None: ask for it.
            genesis: Fingerprint of the card, compared here; None: compared with the given card, or by the custodian.
            starts: Open a session when none is open.

        Raises:
            PilotError: The fingerprint differs, no session is open, or there is nobody to ask.
            EOFError: The input ended.
        """
        if given is None:
            self._terminal.check("give a share card as @FILE, or as - on standard input")
        try:
            progress = self._recovery.load_progress()
            self._compare(progress, given, genesis)
            session = self._join(progress, starts=starts)
            if session.genesis != progress.genesis:
                raise _raise_alarm(f"the session has genesis {group_hex(session.genesis)}, not the one just compared")
            self._say(describe_session(session))
            return self._submit(progress.cluster_id, session, given)
        except WrongStateError as exc:
            raise explain_state(self._recovery, exc) from exc

    def _compare(self, progress: GetProgressResponse, given: GivenShare | None, genesis: bytes | None) -> None:
        if len(progress.genesis) != GENESIS_SIZE:
            raise PilotError("the nexus names no genesis: it cannot show which cluster it is")
        expected = {known for known in (genesis, given.genesis if given else None) if known is not None}
        if not expected:
            self._have_compared(progress)
        elif expected == {progress.genesis}:
            self._say(f"cluster {progress.cluster_id.hex()}: its genesis fingerprint is that of the card")
        else:
            raise _raise_alarm(f"the genesis of this nexus is {group_hex(progress.genesis)}, not that of the card")

    def _have_compared(self, progress: GetProgressResponse) -> None:
        self._terminal.check("--genesis HEX, as printed on the card, compares it without a terminal")
        half = GENESIS_SIZE // 2
        self._terminal.say(
            f"This nexus says that it is of cluster {progress.cluster_id.hex()}, genesis\n\n"
            f"    {group_hex(progress.genesis[:half])}\n    {group_hex(progress.genesis[half:])}\n\n"
            "Compare every group with the genesis on your share card."
        )
        if self._terminal.ask("Are they the same? Type yes or no: ").strip().lower() != "yes":
            raise _raise_alarm("the genesis of this nexus was not confirmed")

    def _join(self, progress: GetProgressResponse, *, starts: bool) -> UnsealSession:
        if progress.HasField("session"):
            return progress.session
        if not starts:
            raise PilotError("no session is open", "'pilot unseal start' opens one; 'pilot unseal' does both")
        try:
            return self._recovery.start()
        except WrongStateError:
            again = self._recovery.load_progress()  # another custodian opened one meanwhile
            if not again.HasField("session"):
                raise
            return again.session

    def _submit(self, cluster_id: bytes, session: UnsealSession, given: GivenShare | None) -> SubmitShareResponse:
        while True:
            share = given.share if given else ask_words(self._terminal, "Enter the words of your share card.")
            try:
                return self._recovery.submit(
                    share, cluster_id=cluster_id, session_id=session.session_id, genesis=session.genesis
                )
            except InvalidArgumentError as exc:
                if given:
                    raise
                self._terminal.say(f"not accepted: {exc.message}")
            except (UnavailableError, DeadlineError) as exc:
                described = describe(exc)
                raise PilotError(
                    str(described),
                    "'pilot unseal status' shows whether the share arrived, 'pilot status' whether the nexus is ready",
                    *described.hints,
                    exit_code=described.exit_code,
                    reason=described.reason,
                ) from exc


def describe_session(session: UnsealSession) -> str:
    """Describe a session: shares submitted and needed, and the time left."""
    minutes = -(-session.expires_in.seconds // 60)
    left = "a minute" if minutes <= 1 else f"{minutes} minutes"
    return f"{session.submitted} of {session.needed} shares submitted; the session ends within {left}"


def explain_state(recovery: Recovery, error: WrongStateError) -> PilotError:
    """Say why a nexus refused a call of an unseal."""
    state = recovery.load_state()
    if state not in SERVED_IN:
        return PilotError(f"the nexus is {state}: there is nothing to unseal")
    return PilotError(error.message, "'pilot unseal status' shows the session")


def _raise_alarm(message: str) -> PilotError:
    return PilotError(
        f"{message}; nothing was submitted",
        "this is another cluster, or someone replaced the database of this one: enter nothing and tell its operators",
    )
