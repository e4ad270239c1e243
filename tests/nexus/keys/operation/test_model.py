"""Operations in a world where messages are late, keepers lie, processes die, and stores are put back."""

import os
import random
from collections import Counter
from typing import Any

import msgspec
import pytest

from nexus.keys import records
from nexus.keys.operation import job
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.next_action import Action, Commit, Fetch, Memory, Prove, Transition, View
from nexus.keys.operation.record import Driver, Step, Ticket
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.transitions import make_flip
from tests.kit.seed import make_random
from tests.nexus.keys.operation.model.core import Core
from tests.nexus.keys.operation.model.steps import run_world
from tests.nexus.keys.operation.model.world import make_memory

STEPS = 1_000_000 if os.environ.get("TEST_PROFILE") == "soak" else 40_000
STEPS_PER_WORLD = 500
WORLDS_TO_BREAK = 40  # a broken rule is noticed in one of so many

# How often it has to happen at least, or the model looks at nothing.
FLOORS = {"flip": 100, "ended at distributed": 20, "rewrap": 50, "accept": 10, "taken over at": 20, "woken": 20}


def run_worlds(core: Core, chance: random.Random, worlds: int) -> Counter[str]:
    """Run one world after the other, and return how often what happened."""
    counts: Counter[str] = Counter()
    memory = make_memory()
    for number in range(worlds):
        seed = chance.getrandbits(64)
        print(f"world {number}: {seed}")
        run_world(core, random.Random(seed), STEPS_PER_WORLD, counts, memory)
    return counts


def test_promises_hold_whatever_happens() -> None:
    """Every committed state opens, no number is used twice, no keeper drops what is needed, and all comes to rest."""
    counts = run_worlds(Core(), make_random("operations"), STEPS // STEPS_PER_WORLD)
    print(counts)
    for what, floor in FLOORS.items():
        assert sum(times for name, times in counts.items() if name.startswith(what)) >= floor, what


class ActivatesEarly(Core):
    """Flips as soon as the numbers are used up, whoever holds what."""

    def next_action(self, facts: Facts, memory: Memory, view: View) -> Action:
        operation = facts.operation
        if operation is not None and operation.step is Step.DISTRIBUTED and operation.driver == memory.driver:
            return (
                Commit(Transition.FLIP) if memory.key_of == operation.id else super().next_action(facts, memory, view)
            )
        return super().next_action(facts, memory, view)

    def flip(self, facts: Facts, ticket: Ticket, **options: Any) -> Change | Refused:
        assert facts.operation is not None
        return make_flip(facts, facts.operation, link=options["link"], revision=options["revision"], at=options["at"])


class DropsEarly(Core):
    """Lets keepers drop a set as soon as it is dead."""

    def is_droppable(self, facts: Facts, set_id: bytes, order: tuple[int, int]) -> bool:
        dead = [one.set_id for one in facts.sets.values() if one.state is records.SetState.DEAD]
        return set_id in dead or super().is_droppable(facts, set_id, order)


class ResumesPrepared(Core):
    """Carries on at `prepared` what another process began."""

    def next_action(self, facts: Facts, memory: Memory, view: View) -> Action:
        operation = facts.operation
        is_foreign = operation is not None and operation.step is Step.PREPARED and memory.begun != operation.id
        if operation is None or not is_foreign or operation.target.set_number not in facts.sets:
            return super().next_action(facts, memory, view)
        if operation.driver != memory.driver:
            return Commit(Transition.TAKE_OVER)
        if memory.key_of != operation.id:
            number = operation.target.set_number
            return Prove(number) if memory.fetched == operation.ticket else Fetch(number)
        return super().next_action(facts, memory, view)

    def take_over(self, facts: Facts, ticket: Ticket, *, driver: Driver, at: int) -> Change | Refused:
        if facts.operation is None or facts.operation.step is not Step.PREPARED:
            return super().take_over(facts, ticket, driver=driver, at=at)
        record = records.encode(msgspec.structs.replace(facts.operation, driver=driver, fence=facts.meta.epoch + 1))
        return Change(facts.current, {records.OPERATION: record})


class KeepsTaintedDeks(Core):
    """Wraps rows anew where an emergency wants new DEKs."""

    def next_job_step(self, facts: Facts, *args: Any) -> job.JobStep | None:
        step = super().next_job_step(facts, *args)
        return job.Rewrap(step.kek_id, renews_deks=False) if isinstance(step, job.Rewrap) else step


class RetiresUnverified(Core):
    """Deletes a KEK although rows are left under it."""

    def next_job_step(self, facts: Facts, *args: Any) -> job.JobStep | None:
        step = super().next_job_step(facts, *args)
        return job.Retire(step.kek_id) if isinstance(step, job.Rewrap) else step

    def retire(self, facts: Facts, kek_id: int, *args: Any, **options: Any) -> Change | Refused:
        kept = {name: kek for name, kek in facts.keyring.keks.items() if int(name) != kek_id}
        body = records.encode(records.KeyringRecord(kept))
        return Change(facts.current, {(records.KEYRING, str(facts.generation)): body})


@pytest.mark.parametrize(
    ("core", "notices"),
    [
        pytest.param(ActivatesEarly(), "flipped with holders", id="activates early"),
        pytest.param(DropsEarly(), "dropped a set that is needed", id="drops early"),
        pytest.param(ResumesPrepared(), "another process went on from prepared", id="resumes"),
        pytest.param(KeepsTaintedDeks(), "a DEK from before an emergency", id="keeps tainted DEKs"),
        pytest.param(RetiresUnverified(), "does not open under KEK|under an older KEK", id="retires a KEK with rows"),
    ],
)
def test_a_broken_rule_is_noticed(core: Core, notices: str) -> None:
    """By what it does to the world: no check knows which rule is broken."""
    with pytest.raises(AssertionError, match=notices):
        run_worlds(core, make_random("broken operations"), WORLDS_TO_BREAK)
