"""Whoever initialises: makes a recovery key, opens the challenge, sends the answer."""

import os

from common.keys.recovery_key import challenge_info, derive_public_key, hash_share, open_sealed
from nexus.access.gate import Caller
from nexus.admin.initialise import Confirmed, InitPlan, StartedAttempt, make_recovery
from nexus.store.protocol import ControlRow, Meta, Store
from tests.nexus.core import SUPERUSER, NexusCore

SEED = os.urandom(32)
PUBLIC_KEY = derive_public_key(SEED)
RECOVERY = make_recovery(PUBLIC_KEY, 2, [hash_share(os.urandom(40)) for _ in range(3)])
PLAN = InitPlan(0, RECOVERY)


def begin(core: NexusCore, plan: InitPlan = PLAN, caller: Caller = SUPERUSER) -> StartedAttempt:
    """Begin an attempt."""
    return core.initialisation.begin(caller, plan)


def answer(begun: StartedAttempt, seed: bytes = SEED) -> bytes:
    """Open the challenge, as pilot does from shares read back."""
    return open_sealed(begun.challenge, seed, challenge_info(begun.cluster_id, begun.attempt, begun.genesis))


def confirm(core: NexusCore, begun: StartedAttempt, reply: bytes | None = None, *, seconds: float = 10) -> Confirmed:
    """Send the true answer, or another one."""
    reply = answer(begun) if reply is None else reply
    return core.initialisation.confirm(SUPERUSER, begun.attempt, reply, seconds=seconds)


def load(store: Store) -> tuple[Meta, dict[tuple[str, str], ControlRow]]:
    """Load meta row and control rows."""
    with store.read() as reader:
        return reader.load_meta(), {(row.kind, row.name): row for row in reader.load_controls()}
