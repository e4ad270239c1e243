"""One row of the table: the measurement, beside its baseline of the same run, and what the design wants of it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.rounds import Compared, Spread


@dataclass(frozen=True)
class Target:
    text: str
    is_reached: bool | None = None  # None: there is no target


@dataclass(frozen=True)
class Row:
    work: str
    measured: str
    target: Target
    baseline: str = "–"
    ratio: Spread | None = None  # measured ÷ baseline


AS_LOW_AS_IT_GOES = Target("as low as it goes")


def make_row(work: str, found: Compared, show: Callable[[float], str], target: Target) -> Row:
    """Make the row of two numbers that are shown the same way."""
    return Row(work, show(found.measured), target, show(found.baseline), found.ratio)


def at_least(wanted: float, found: float) -> Target:
    """Require a ratio of *wanted* or more."""
    text = f"≥ {wanted:.0%}" if wanted <= 1 else f"≥ {wanted:g} ×"
    return Target(text, found >= wanted)


def at_most(wanted: float, unit: str, found: float) -> Target:
    """Require *wanted* or less."""
    return Target(f"≤ {wanted:g} {unit}", found <= wanted)


def per_second(number: float) -> str:
    return f"{number:,.0f} /s"


def microseconds(number: float) -> str:
    return f"{number:,.1f} µs" if number < 100 else f"{number:,.0f} µs"


def seconds(number: float) -> str:
    return f"{number * 1000:,.0f} ms" if number < 1 else f"{number:.2f} s"


def megabytes(number: float) -> str:
    return f"{number:.1f} MB"
