"""The checker of histories: it takes every history that can be, and refuses those that cannot."""

import dataclasses
import random
from typing import Any

import pytest

from tests.kit.linearizability import Call, Kind, Outcome, Secret, find_violation, find_violations

PATH = "history/a"


def call(kind: Kind, began: int, ended: int, outcome: Outcome = "ok", **parts: Any) -> Call:
    return Call(PATH, kind, began, ended, outcome, **parts)


def put(began: int, ended: int, value: str, version: int, incarnation: str = "A", **parts: Any) -> Call:
    return call("put", began, ended, value=value, version=version, incarnation=incarnation, **parts)


def get(began: int, ended: int, value: str, version: int, incarnation: str = "A") -> Call:
    return call("get", began, ended, value=value, version=version, incarnation=incarnation)


def delete(began: int, ended: int, version: int) -> Call:
    return call("delete", began, ended, version=version)


def missing(began: int, ended: int, kind: Kind = "get") -> Call:
    return call(kind, began, ended, "not found")


def conflict(began: int, ended: int, expected: int, incarnation: str = "") -> Call:
    return call("put", began, ended, "conflict", value="c", expected=expected, expected_incarnation=incarnation)


def lost(began: int, value: str, **parts: Any) -> Call:
    return call("put", began, 0, "unknown", value=value, **parts)


GOOD = [
    pytest.param([], id="nothing"),
    pytest.param([missing(1, 2), put(3, 4, "v", 1), get(5, 6, "v", 1)], id="one after the other"),
    pytest.param([put(1, 9, "v", 1), missing(2, 3), get(4, 5, "v", 1)], id="a read before and one after a slow put"),
    pytest.param([put(1, 9, "v", 2), put(2, 8, "w", 1)], id="two puts at once, the later one first"),
    pytest.param([put(1, 5, "v", 1), get(5, 6, "v", 1)], id="a beginning at the moment of an end"),
    pytest.param(
        [put(1, 2, "v", 1), delete(3, 4, 1), missing(5, 6), put(7, 8, "w", 1, "B"), get(9, 10, "w", 1, "B")],
        id="a new incarnation",
    ),
    pytest.param(
        [put(1, 2, "v", 1), put(3, 4, "w", 2, expected=1), conflict(5, 6, 1), conflict(7, 8, 2, "B")],
        id="check-and-set",
    ),
    pytest.param([put(1, 2, "v", 1, expected=0), conflict(3, 4, 0)], id="must not exist"),
    pytest.param([put(1, 20, "v", 1), conflict(2, 19, 0), delete(3, 18, 1), missing(4, 17)], id="all at once"),
    pytest.param([lost(1, "v"), missing(2, 3)], id="a put without an answer that never was"),
    pytest.param([lost(1, "v"), missing(2, 3), get(4, 5, "v", 1)], id="a put without an answer that came later"),
    pytest.param([lost(1, "v"), get(2, 3, "v", 1), get(4, 5, "v", 1)], id="a put without an answer that came at once"),
    pytest.param(
        [lost(1, "v", expected=1), put(2, 3, "w", 1), get(4, 5, "w", 1), get(6, 7, "v", 2)],
        id="a check-and-set without an answer that fits later",
    ),
    pytest.param(
        [put(1, 2, "v", 1), call("delete", 3, 0, "unknown"), get(4, 5, "v", 1), missing(6, 7)],
        id="a delete without an answer",
    ),
    pytest.param(
        [put(1, 2, "v", 1), call("delete", 3, 0, "unknown"), put(4, 5, "w", 1, "B"), get(6, 7, "w", 1, "B")],
        id="what a delete without an answer explains",
    ),
]

# Found by tests/cluster/test_histories.py, in milliseconds: all that was under way when the wrong answer came.
DELETED_TWICE = [
    put(10155, 10177, "w3.24", 1, "2fe0"),
    delete(10182, 10563, 1),  # its answer was lost, and its repetition deleted what w10 had put
    put(10322, 10415, "w10.16", 1, "41ff"),
    lost(10611, "w9.18"),
    get(10660, 10712, "w9.18", 1, "b531"),
]
PUT_TWICE = [
    put(0, 302, "w1.5", 2, "55f5"),  # its answer was lost, and its repetition made the second version
    get(302, 335, "w1.5", 2, "55f5"),
    get(449, 478, "w1.5", 2, "55f5"),
    put(570, 620, "w3.5", 3, "55f5"),
]

BAD = [
    pytest.param(DELETED_TWICE, id="found: request ids die with their secret"),
    pytest.param(PUT_TWICE, id="found: request ids are forgotten"),
    pytest.param([put(1, 2, "v", 1), missing(3, 4)], id="a read finds nothing after a put"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 2), get(5, 6, "v", 1)], id="a read of the version before"),
    pytest.param([put(1, 9, "v", 1), get(2, 3, "v", 1), missing(4, 5)], id="a read that goes back"),
    pytest.param([put(1, 2, "v", 1), get(3, 4, "w", 1)], id="a value that nobody put"),
    pytest.param([put(1, 2, "v", 1), get(3, 4, "v", 2)], id="another version"),
    pytest.param([put(1, 2, "v", 1), get(3, 4, "v", 1, "B")], id="another incarnation"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 3)], id="a version that nobody wrote"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 1)], id="one version twice"),
    pytest.param([put(1, 2, "v", 1), delete(3, 4, 1), put(5, 6, "w", 1)], id="an incarnation that comes back"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 1, "B")], id="a new incarnation of what is there"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 2, "B")], id="the next version of another incarnation"),
    pytest.param([put(1, 2, "v", 1), conflict(3, 4, 1)], id="a conflict with what is current"),
    pytest.param([conflict(1, 2, 0)], id="a conflict with nothing, where nothing was wanted"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 2, expected=2)], id="a check-and-set of what is not current"),
    pytest.param(
        [put(1, 2, "v", 1), put(3, 4, "w", 2, expected=1, expected_incarnation="B")],
        id="a check-and-set of another incarnation",
    ),
    pytest.param([put(1, 2, "v", 1), missing(3, 4, "delete")], id="a delete finds nothing after a put"),
    pytest.param([delete(1, 2, 1)], id="a delete of nothing"),
    pytest.param([put(1, 2, "v", 1), put(3, 4, "w", 2), delete(5, 6, 1)], id="a delete that knows one version only"),
    pytest.param([put(1, 2, "v", 1), delete(3, 4, 1), get(5, 6, "v", 1)], id="a read after a delete"),
    pytest.param([lost(1, "v"), get(2, 3, "v", 1), missing(4, 5)], id="a put without an answer that came and went"),
    pytest.param([lost(1, "v"), get(2, 3, "v", 1, "A"), get(4, 5, "v", 1, "B")], id="two incarnations of one put"),
    pytest.param([get(1, 2, "v", 1), lost(3, "v")], id="a put without an answer that came before it began"),
]


@pytest.mark.parametrize("history", GOOD)
def test_a_history_that_can_be_is_taken(history: list[Call]) -> None:
    """There is an order of its calls, and the checker finds it."""
    assert find_violations(history) == []


@pytest.mark.parametrize("history", BAD)
def test_a_history_that_cannot_be_is_refused(history: list[Call]) -> None:
    """No order of its calls explains all answers, and the checker names the path."""
    (violation,) = find_violations(history)
    assert violation.startswith(f"{PATH}: no order of {len(history)} calls")


def test_each_path_is_judged_alone() -> None:
    """A violation on one path is found between calls on another, and the other is not blamed."""
    good = [dataclasses.replace(one, path="history/b") for one in (put(1, 2, "v", 1), missing(0, 1), get(3, 9, "v", 1))]
    bad = [put(1, 2, "v", 1), missing(3, 4)]
    assert [found.split(":")[0] for found in find_violations([*good, *bad])] == [PATH]


def play(chance: random.Random, *, calls: int, workers: int, lose: float = 0.0) -> list[Call]:
    """Make a history that can be: each call takes effect at a moment of its own between its beginning and its end.

    Some of the answers are *lost*.
    """
    secret, made, free = Secret(), [], [0] * workers
    for moment in range(1, calls + 1):
        at = moment * 100
        worker = chance.choice([one for one in range(workers) if free[one] < at])
        began, ended = chance.randrange(free[worker], at), at + chance.randrange(1, 100 * workers)
        kind: Kind = chance.choice(["put", "put", "get", "get", "delete"])
        known = dataclasses.replace(secret)
        one = Call(PATH, kind, began, ended, "ok", version=known.version, incarnation=known.incarnation)
        if kind == "put":
            incarnation = known.incarnation if known.version else f"I{moment}"
            expected = chance.choice([None, None, known.version, known.version + chance.choice([-1, 1])])
            version = known.version + 1
            one = dataclasses.replace(
                one, value=f"v{moment}", version=version, incarnation=incarnation, expected=expected
            )
            if expected not in (None, known.version):
                one = dataclasses.replace(one, outcome="conflict", version=0, incarnation="")
        elif not known.version:
            one = dataclasses.replace(one, outcome="not found", incarnation="")
        elif kind == "get":
            one = dataclasses.replace(one, value=known.value)
        left = secret.take(one)
        assert left is not None
        secret, free[worker] = left, ended
        if one.outcome == "ok" and chance.random() < lose:
            one = dataclasses.replace(one, outcome="unknown", version=0, ended=0, incarnation="")
        made.append(one)
    return sorted(made, key=lambda one: one.began)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    "lose", [pytest.param(0.0, id="all answered"), pytest.param(0.03, id="some without an answer")]
)
def test_any_history_that_was_played_is_taken(seed: int, lose: float) -> None:
    """Calls of 16 workers at once, each with its effect somewhere in its time, are taken, whatever their order."""
    assert find_violation(play(random.Random(seed), calls=200, workers=16, lose=lose)) == ""


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_answer_in_a_played_history_is_found(seed: int) -> None:
    """A long history is refused when one put answers with the version after the true one."""
    chance = random.Random(seed)
    history = play(chance, calls=200, workers=16)
    index = chance.choice([index for index, one in enumerate(history) if one.kind == "put" and one.outcome == "ok"])
    history[index] = dataclasses.replace(history[index], version=history[index].version + 1)
    assert find_violation(history)
