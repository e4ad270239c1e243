"""Why a transition is refused: a stable reason, and a sentence for the person who asked."""

import enum
from dataclasses import dataclass


class Reason(enum.StrEnum):
    """Callers match on these."""

    # Before an operation begins.
    KEEPERS_SHORT = "KEEPERS_SHORT"
    KEEPER_TOO_OLD = "KEEPER_TOO_OLD"
    ESCROW_UNPROVED = "ESCROW_UNPROVED"
    CHAIN_FULL = "CHAIN_FULL"
    BACKUP_OLD = "BACKUP_OLD"
    DISK_SHORT = "DISK_SHORT"
    MEMORY_SHORT = "MEMORY_SHORT"
    MINIMUM_AGE = "MINIMUM_AGE"
    OUTSIDE_WINDOW = "OUTSIDE_WINDOW"
    OPERATION_RUNNING = "OPERATION_RUNNING"
    CONTROL_ROW_DAMAGED = "CONTROL_ROW_DAMAGED"
    SEALED = "SEALED"
    MEMBERS_INVALID = "MEMBERS_INVALID"
    REASON_MISSING = "REASON_MISSING"
    STAGED_INVALID = "STAGED_INVALID"  # what the driver made does not fit the rows, or a number was given out meanwhile
    # During an operation.
    NO_OPERATION = "NO_OPERATION"
    OPERATION_MOVED = "OPERATION_MOVED"  # another step, or another driver, came first
    OPERATION_FLIPPED = "OPERATION_FLIPPED"
    KEY_LOST = "KEY_LOST"
    HOLDERS_SHORT = "HOLDERS_SHORT"
    NOT_PROVED = "NOT_PROVED"
    WAIVER_INVALID = "WAIVER_INVALID"
    # The keyring job.
    KEK_UNKNOWN = "KEK_UNKNOWN"
    KEK_CURRENT = "KEK_CURRENT"
    KEK_UNVERIFIED = "KEK_UNVERIFIED"
    ROWS_LEFT = "ROWS_LEFT"
    QUARANTINE = "QUARANTINE"


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing is changed."""

    reason: Reason
    text: str
