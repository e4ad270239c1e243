"""How fast the keyring job goes: batches are small, and calls come first."""

from typing import Final

BATCH: Final = 125  # rows; their cryptography takes some 3 ms, less than a thread may keep others waiting


def find_batch(rows_per_second: float) -> int:
    """Return how many rows to take at once; *rows_per_second* is the limit, 0: none."""
    return BATCH if rows_per_second <= 0 else max(1, min(BATCH, int(rows_per_second)))


def find_rest(rows: int, seconds: float, *, has_callers: bool, rows_per_second: float) -> float:
    """Return how many seconds to rest after a batch of *rows* that took *seconds*.

    While calls are in flight, as long as the batch took; at a limit of *rows_per_second* what is left of its time.
    """
    courtesy = seconds if has_callers else 0.0
    limit = rows / rows_per_second - seconds if rows_per_second > 0 else 0.0
    return max(courtesy, limit, 0.0)
