"""What status, list of keepers and metrics tell of an operation."""

import os

import pytest
from prometheus_client import CollectorRegistry

from common.clock import to_micros
from nexus.admin.status import OperationStep
from nexus.keys.operation.record import Depth, Step
from nexus.server.metrics import KeeperCollector, RotationCollector
from nexus.vault.expected import Expected
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.cluster import tamper
from tests.nexus.core import AUDITOR, OPERATOR, SUPERUSER


def find_operation(resharing: Resharing) -> OperationStep | None:
    """Return what status tells of an operation."""
    _, view = resharing.core.status.describe(AUDITOR)
    assert view is not None
    return view.operation


def list_sets(resharing: Resharing) -> dict[str, tuple[int, ...]]:
    """Return what the list of keepers tells of their sets."""
    return {view.member.name: view.sets for view in resharing.core.status.list_keepers(AUDITOR)}


@pytest.mark.parametrize("step", list(Step))
def test_status_tells_the_step_of_an_operation(resharing: Resharing, step: Step) -> None:
    """Before and after it, there is none."""
    assert find_operation(resharing) is None
    resharing.begin()
    resharing.drive_to(step)
    shown = find_operation(resharing)
    assert shown is not None
    assert (shown.kind, shown.step) == ("reshare", step)
    resharing.drive_to(None)
    assert find_operation(resharing) is None


def test_status_tells_no_operation_that_the_manifest_does_not_prove(resharing: Resharing) -> None:
    """Whoever can write into the store makes nobody believe in one."""
    resharing.begin()
    tamper(resharing.core.folder, "UPDATE control SET body = CAST(body || ' ' AS BLOB) WHERE kind = ?", "operation")
    assert find_operation(resharing) is None


def test_keepers_are_listed_with_every_set_that_they_hold(resharing: Resharing) -> None:
    """One that keeps a dead set is seen; once it is dropped, only the current one is left."""
    assert set(list_sets(resharing).values()) == {(1,)}
    resharing.begin()
    resharing.drive_to(Step.FLIPPED)
    wait_until(lambda: set(list_sets(resharing).values()) == {(1, 2)})
    resharing.keepers[0].is_reachable = False
    resharing.drive_to(None)
    resharing.drive(until=lambda: list(list_sets(resharing).values()) == [(1, 2), *[(2,)] * 4])
    resharing.keepers[0].is_reachable = True
    resharing.drive_to_rest()
    assert set(list_sets(resharing).values()) == {(2,)}


@pytest.fixture
def registry(resharing: Resharing) -> CollectorRegistry:
    """Scrape this nexus."""
    core, registry = resharing.core, CollectorRegistry()
    registry.register(KeeperCollector(core.lifecycle, core.pool, core.warden, core.clock))
    registry.register(
        RotationCollector(core.lifecycle, resharing.store, core.driver, core.schedule, core.job, core.clock)
    )
    return registry


def test_metrics_tell_the_step_and_what_is_still_held(resharing: Resharing, registry: CollectorRegistry) -> None:
    """A step that does not end, and a keeper that does not drop, can be alerted on."""

    def find_steps() -> list[str]:
        return [step for step in Step if registry.get_sample_value("shardhold_operation_step", {"step": step})]

    def count_dead(name: str) -> float | None:
        return registry.get_sample_value("shardhold_dead_sets_held", {"keeper": name})

    def find_seconds() -> float | None:
        return registry.get_sample_value("shardhold_operation_seconds")

    assert (find_steps(), find_seconds(), count_dead("keeper-1")) == ([], None, 0)
    resharing.begin()
    for step in Step:
        resharing.drive_to(step)
        resharing.core.driver.step()
        assert find_steps() in ([step], [resharing.step])
    assert find_seconds() == 0
    resharing.core.clock.advance(30)
    assert find_seconds() == 30
    resharing.drive_to(None)
    resharing.keepers[0].is_reachable = False
    resharing.drive(until=lambda: (count_dead("keeper-1"), count_dead("keeper-2")) == (1, 0))
    assert (find_steps(), find_seconds()) == ([], None)
    resharing.keepers[0].is_reachable = True
    resharing.drive_to_rest()
    assert count_dead("keeper-1") == 0


def test_a_sealed_nexus_tells_no_step(resharing: Resharing, registry: CollectorRegistry) -> None:
    """Nobody carries it on meanwhile."""
    resharing.begin()
    resharing.core.driver.start()
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    wait_until(lambda: resharing.core.driver.seen_step is None)
    assert registry.get_sample_value("shardhold_dead_sets_held", {"keeper": "keeper-1"}) == 0


def test_metrics_and_status_tell_when_a_rotation_is_due(resharing: Resharing, registry: CollectorRegistry) -> None:
    """Its age from the first look on, and an alarm once the root key is as old as its interval."""

    def read() -> tuple[float | None, float | None]:
        names = ("shardhold_root_generation_age_seconds", "shardhold_rotation_due")
        return registry.get_sample_value(names[0]), registry.get_sample_value(names[1])

    def list_alarms() -> list[str]:
        _, view = core.status.describe(AUDITOR)
        assert view is not None
        return view.alarms

    core, activated_at = resharing.core, resharing.facts.generations[1].activated_at
    assert read() == (None, 0)
    core.schedule.look(resharing.facts)
    age = (to_micros(core.clock.now()) - activated_at) / 1e6
    assert (read(), list_alarms()) == ((age, 0), [])
    core.clock.advance(1001 * 86_400 - age)
    core.schedule.look(resharing.facts)
    told = "root key 1 is 1001 days old, its interval is 1000 days"
    assert (read(), list_alarms()) == ((1001 * 86_400, 1), [f"rotation due: {told}"])
    assert [entry.detail for entry in core.list_all_entries() if entry.action == "rotation.due"] == [told]


@pytest.mark.parametrize("resharing", [Depth.ROTATE], indirect=True)
def test_metrics_tell_what_the_keyring_job_has_to_do(resharing: Resharing, registry: CollectorRegistry) -> None:
    """Rows under the KEK of before, until it is gone."""

    def read(name: str) -> float | None:
        return registry.get_sample_value(f"shardhold_{name}")

    core = resharing.core
    core.vault.put(SUPERUSER, "team/a", {"a": b"b"}, Expected(), os.urandom(16))
    assert (read("keks_old"), read("rewrap_rows_left")) == (0, 0)
    resharing.begin()
    resharing.drive_to_rest()
    assert read("keks_old") == 1
    core.rotation_calls.pause(SUPERUSER, "look")
    core.job.step()
    assert (read("rewrap_rows_left"), read("quarantine_rows"), read("scrub_pending")) == (1, 0, 0)
    core.rotation_calls.resume(SUPERUSER)
    wait_until(lambda: (core.job.step(), core.job.view())[1] is None)
    assert (read("keks_old"), read("rewrap_rows_left"), read("rewrap_rows_per_second")) == (0, 0, 0)
