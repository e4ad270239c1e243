"""The operation on the root key that is under way, as the control row `operation/current` keeps it."""

import enum
from typing import NamedTuple

import msgspec

from nexus.keys.records import Number


class Depth(enum.StrEnum):
    """How much an operation renews."""

    RESHARE = "reshare"  # new polynomials of the same root key; threshold and keepers may change
    ROTATE = "rotate"  # a new root key and a new KEK
    EMERGENCY = "emergency"  # the same, and every value under an older KEK gets a new DEK

    @property
    def renews_key(self) -> bool:
        """Whether there is a new root key, with its link, escrow and KEK."""
        return self is not Depth.RESHARE


class Step(enum.StrEnum):
    """What is durable. Only `prepared` and `distributed` can be taken back."""

    PREPARED = "prepared"  # the numbers are used up, the rows of the new generation are there, the new set is pending
    DISTRIBUTED = "distributed"  # keepers hold the new set, and the rehearsal passed
    FLIPPED = "flipped"  # what is new is current; what was replaced can still be opened


class Driver(msgspec.Struct, frozen=True):
    """The process that carries an operation out: its points and keys are in no other one."""

    nexus: str
    boot: bytes  # 16 bytes, new at each start of the nexus


class Numbers(msgspec.Struct, frozen=True):
    """What is current before an operation, or after it."""

    generation: Number = 0
    set_number: Number = 0
    kek_id: Number = 0


class WaiverKind(enum.StrEnum):
    """What an operator takes upon themselves."""

    BACKUP = "without-backup"  # no backup of the generation before, nor of the one after, is waited for
    THRESHOLD = "with-threshold"  # as few as t holders are enough for the flip
    PROOF = "without-proof"  # the operation ends although keepers did not bring the new set back


class Waiver(msgspec.Struct, frozen=True):
    """One word of an operator."""

    kind: WaiverKind
    reason: str
    actor: str


class Acknowledgement(msgspec.Struct, frozen=True):
    """A keeper that proved to hold the new set. It is kept to explain what happened; nothing is decided by it."""

    keeper: str
    boot_id: bytes  # 16 bytes


class Ticket(NamedTuple):
    """What a transition expects to find: it is a compare-and-swap on these three."""

    operation_id: bytes  # 16 bytes
    step: Step
    fence: int


class Outcome(enum.StrEnum):
    """How an operation has ended."""

    SETTLED = "settled"
    ABORTED = "aborted"  # taken back before its flip


class EndedRecord(msgspec.Struct, frozen=True):
    """The operation that ended last, as the control row `operation-ended/last` keeps it."""

    id: bytes  # 16 bytes
    depth: Depth
    outcome: Outcome
    detail: str  # why it was taken back
    ended_at: Number  # microseconds since 1970
    source: Numbers
    target: Numbers


class OperationRecord(msgspec.Struct, frozen=True):
    """Times are microseconds since 1970."""

    id: bytes  # 16 bytes
    depth: Depth
    step: Step
    fence: Number  # the epoch of the last transition
    driver: Driver
    reason: str
    actor: str
    started_at: Number
    stepped_at: Number  # of the last transition
    source: Numbers
    target: Numbers
    quorum: Number  # holders of the new set that the flip wants
    waivers: tuple[Waiver, ...] = ()
    link: bytes = b""  # unsigned; empty where the root key stays
    suspected_at: Number = 0  # since when somebody else may have had the root key; 0: not known
    acknowledgements: tuple[Acknowledgement, ...] = ()

    @property
    def ticket(self) -> Ticket:
        """What a transition of this operation expects."""
        return Ticket(self.id, self.step, self.fence)

    def waives(self, kind: WaiverKind) -> bool:
        """Whether an operator took *kind* upon themselves."""
        return any(waiver.kind is kind for waiver in self.waivers)
