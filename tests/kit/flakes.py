"""Tests that failed once and then passed three times: `tests/flakes.toml`, and the rules that it is kept by.

1. An entry older than 14 days fails `make lint`: by then the test is mended.
2. So does a test that stands there twice.
"""

import json
import tomllib
from collections import Counter
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parents[1] / "flakes.toml"
KEPT: Final = timedelta(days=14)
_LONGEST_ERROR = 200  # characters


@dataclass(frozen=True)
class Flake:
    """One failure that was luck."""

    date: date
    test: str
    error: str

    def to_toml(self) -> str:
        """Return the entry as it stands in the file."""
        test, error = _quote(self.test), _quote(self.error[:_LONGEST_ERROR])
        return f"[[flake]]\ndate = {self.date}\ntest = {test}\nerror = {error}\n"


def read_flakes(text: str) -> list[Flake]:
    """Read the entries of the file."""
    return [Flake(**entry) for entry in tomllib.loads(text).get("flake", [])]


def find_faults(flakes: list[Flake], *, today: date) -> list[str]:
    """Return what nobody may leave in the file."""
    old = [f"{flake.test}: since {flake.date}, mend it" for flake in flakes if flake.date < today - KEPT]  # rule 1
    count = Counter(flake.test for flake in flakes)
    return old + [
        f"{test}: stands there {times} times, mend it" for test, times in count.items() if times > 1
    ]  # rule 2


def _quote(text: str) -> str:
    return json.dumps("".join(sign if sign.isprintable() else " " for sign in text), ensure_ascii=False)
