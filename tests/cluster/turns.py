"""Cells of a large test that take turns in runs with TEST_ROUND, and all run without it, as in `make soak`."""

import os
from collections.abc import Sequence
from typing import TypeVar

from tests.containers.rounds import ROUNDS, parse_round

T = TypeVar("T")


def list_due(cells: Sequence[T]) -> Sequence[T]:
    """Return the third of *cells* that is due in this run, or all of them."""
    number = parse_round(os.environ.get("TEST_ROUND", ""))
    return cells if number is None else cells[number % ROUNDS :: ROUNDS]
