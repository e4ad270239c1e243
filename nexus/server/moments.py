"""Moments of the store as messages."""

from google.protobuf.timestamp_pb2 import Timestamp

_LAST_TIME = 253_402_300_799_999_999  # microseconds since 1970: the end of the year 9999


def to_timestamp(microseconds: int) -> Timestamp:
    """Return a moment since 1970. Nothing proves a stored time: one out of range must not fail in the caller."""
    microseconds = min(max(microseconds, 0), _LAST_TIME)
    return Timestamp(seconds=microseconds // 1_000_000, nanos=microseconds % 1_000_000 * 1000)


def to_time(microseconds: int) -> Timestamp | None:
    """Return a moment since 1970, None for 0: it is not known, or has not come."""
    return to_timestamp(microseconds) if microseconds > 0 else None
