"""Rounds: A B A B …, so that disturbances of the machine affect both; medians, so that one bad round matters little."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The median of some rounds, and how far apart they are."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1])


@dataclass(frozen=True)
class Compared:
    """One number of all rounds."""

    measured: float
    baseline: float
    ratio: Spread  # of the two within one round


def interleave(measure: Callable[[], T], baseline: Callable[[], T], *, rounds: int) -> list[tuple[T, T]]:
    """Run both in turn, *rounds* times."""
    return [(measure(), baseline()) for _ in range(rounds)]


def compare(pairs: Iterable[tuple[T, T]], number: Callable[[T], float]) -> Compared:
    """Compare one *number* of what the rounds gave."""
    numbers = [(number(measured), number(baseline)) for measured, baseline in pairs]
    return Compared(
        measured=statistics.median(measured for measured, _ in numbers),
        baseline=statistics.median(baseline for _, baseline in numbers),
        ratio=Spread.of(measured / baseline for measured, baseline in numbers),
    )
