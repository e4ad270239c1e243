"""The rules under test, as one object: a subclass breaks one of them, and the model has to notice."""

from typing import Any

from nexus.keys.operation import dead_sets, ending, job, next_action, replacing, transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.next_action import Action, Memory, View
from nexus.keys.operation.refusal import Refused


class Core:
    """As they are."""

    def next_action(self, facts: Facts, memory: Memory, view: View) -> Action:
        return next_action.next_action(facts, memory, view)

    def prepare(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.prepare(facts, *args, **options)

    def distribute(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.distribute(facts, *args, **options)

    def flip(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.flip(facts, *args, **options)

    def settle(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.settle(facts, *args, **options)

    def abort(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.abort(facts, *args, **options)

    def heal(self, facts: Facts) -> Change | Refused:
        return transitions.heal(facts)

    def take_over(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.take_over(facts, *args, **options)

    def waive(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return transitions.waive(facts, *args, **options)

    def end_operation(self, facts: Facts, **options: Any) -> Change:
        return ending.end_operation(facts, **options)

    def replace_at_once(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return replacing.replace_at_once(facts, *args, **options)

    def is_droppable(self, facts: Facts, set_id: bytes, order: tuple[int, int]) -> bool:
        return dead_sets.is_droppable(facts, set_id, order)

    def forget_sets(self, facts: Facts, *args: Any) -> Change:
        return dead_sets.forget_sets(facts, *args)

    def next_job_step(self, facts: Facts, *args: Any) -> job.JobStep | None:
        return job.next_job_step(facts, *args)

    def mark_verified(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return job.mark_verified(facts, *args, **options)

    def count_abandoned(self, facts: Facts, *args: Any) -> Change | Refused:
        return job.count_abandoned(facts, *args)

    def retire(self, facts: Facts, *args: Any, **options: Any) -> Change | Refused:
        return job.retire(facts, *args, **options)
