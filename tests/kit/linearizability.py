"""Whether a history of calls on one secret can have happened one after the other: a search by Wing and Gong, with memo.

1. A call takes effect at one moment between its beginning and its answer. One without an answer took effect at some
   moment after its beginning, or never.
2. At that moment it finds what the calls before it left, and answers accordingly (`Secret.take`).
3. No two puts are answered with one version of one incarnation, whatever was deleted between them.
4. A call that is answered and changes nothing is taken as soon as it fits, without looking at other orders: what fits
   later without it fits with it as well. Calls without an answer are never taken so: they may still change something.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

Kind = Literal["put", "get", "delete"]
Outcome = Literal["ok", "conflict", "not found", "unknown"]

_MOST_SHOWN = 12  # calls


@dataclass(frozen=True, slots=True)
class Call:
    """One call on one secret, and its answer; deletes are of all versions."""

    path: str
    kind: Kind
    began: int  # on one clock for all
    ended: int  # of no meaning while the outcome is unknown
    outcome: Outcome
    value: str = ""  # put or read; no two puts have the same
    expected: int | None = None  # version, of a check-and-set; 0: there must be none
    expected_incarnation: str = ""  # empty: any
    version: int = 0  # written, read, or the newest deleted
    incarnation: str = ""  # written or read

    @property
    def end(self) -> float:
        """When it has taken effect at the latest."""
        return math.inf if self.outcome == "unknown" else self.ended


@dataclass(frozen=True, slots=True)
class Secret:
    """What a secret is between two calls; version 0: there is none."""

    version: int = 0
    incarnation: str = ""  # empty besides: nobody was told it yet
    value: str = ""

    def take(self, call: Call) -> "Secret | None":
        """Return what *call* leaves; None: it cannot have found this and answered so. Unknown: what it leaves if it
        takes effect.
        """
        if call.kind == "put":
            return self._take_put(call)
        if call.outcome == "not found":
            return None if self.version else self
        if call.kind == "get":
            return self._take_get(call)
        if not self.version or (call.outcome == "ok" and call.version != self.version):
            return None
        return _NONE

    def _take_put(self, call: Call) -> "Secret | None":
        fits = call.expected is None or (
            call.expected == self.version and not (self.version and self._differs(call.expected_incarnation))
        )
        if call.outcome == "conflict":
            return None if fits else self
        if not fits:
            return None
        incarnation = self.incarnation if self.version else call.incarnation
        if call.outcome == "ok":
            if call.version != self.version + 1 or (self.version and self._differs(call.incarnation)):
                return None
            incarnation = call.incarnation
        return Secret(self.version + 1, incarnation, call.value)

    def _take_get(self, call: Call) -> "Secret | None":
        if call.outcome == "unknown":
            return self
        if (call.version, call.value) != (self.version, self.value) or self._differs(call.incarnation):
            return None
        return replace(self, incarnation=call.incarnation)

    def _differs(self, incarnation: str) -> bool:
        return bool(incarnation and self.incarnation) and incarnation != self.incarnation


_NONE = Secret()


def find_violations(calls: Iterable[Call]) -> list[str]:
    """Search the history of each path for an order; describe each that has none."""
    by_path = sorted(calls, key=lambda call: (call.path, call.began))
    histories = (list(group) for _, group in groupby(by_path, key=lambda call: call.path))
    return [found for history in histories if (found := find_violation(history))]


def find_violation(history: Sequence[Call]) -> str:
    """Return why the calls on one path, in the order of their beginnings, have no order; empty: they have one."""
    written = [(call.incarnation, call.version) for call in history if call.kind == "put" and call.outcome == "ok"]
    if len(set(written)) < len(written):  # rule 3
        return f"{history[0].path}: no order of {len(history)} calls; two puts wrote one version: {sorted(written)}"
    answered = sum(1 << index for index, call in enumerate(history) if call.outcome != "unknown")
    furthest, stuck = 0, _NONE
    seen: set[tuple[int, Secret]] = set()
    open_states: list[tuple[int, Secret]] = [(0, _NONE)]
    while open_states:
        taken, secret = open_states.pop()
        if taken & answered == answered:
            return ""
        if (taken, secret) in seen:
            continue
        seen.add((taken, secret))
        if taken.bit_count() > furthest.bit_count():
            furthest, stuck = taken, secret
        open_states += _list_next(history, taken, secret)
    return _describe(history, furthest, stuck)


def _list_next(history: Sequence[Call], taken: int, secret: Secret) -> list[tuple[int, Secret]]:
    """List what may come after the calls of the mask *taken*, which left *secret*."""
    following = []
    for index in _list_possible(history, taken):
        call = history[index]
        left = secret.take(call)
        if left is None:
            continue
        after = (taken | 1 << index, left)
        if left == secret and call.outcome != "unknown":  # rule 4
            return [after]
        following.append(after)
    return following


def _list_possible(history: Sequence[Call], taken: int) -> Iterator[int]:
    """Yield the calls that began before any other one that is left had to have taken effect."""
    latest = math.inf
    first = (~taken & (taken + 1)).bit_length() - 1
    for index in range(first, len(history)):
        if history[index].began > latest:
            return
        if not taken >> index & 1:
            yield index
            latest = min(latest, history[index].end)


def _describe(history: Sequence[Call], taken: int, secret: Secret) -> str:
    left = [call for index, call in enumerate(history) if not taken >> index & 1]
    shown = "\n".join(f"  {call}" for call in left[:_MOST_SHOWN])
    return (
        f"{history[0].path}: no order of {len(history)} calls; after {taken.bit_count()} of them, which left {secret}, "
        f"none of these comes next:\n{shown}"
    )
