"""What the metrics of a nexus tell of its state, its keepers, its audit and its disks."""

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from nexus.admin.disks import Disks
from nexus.lifecycle.recovery_time import RecoveryTime
from nexus.lifecycle.states import State
from nexus.server.metrics import DiskCollector, KeeperCollector, StateCollector
from nexus.vault.secrets import Expected
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import OPERATOR, RECOVER, SUPERUSER, NexusCore


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready nexus with three keepers, of which a restart needs two."""
    return make_nexus()


class Scrape:
    """Reads samples by the names that they have after `shardhold_`."""

    def __init__(self, nexus: NexusCore, folder: Path) -> None:
        self.recovery_time = RecoveryTime(nexus.clock, State.RECOVERING)
        self.disks = Disks({"audit": folder}, nexus.clock)
        self._registry = CollectorRegistry()
        for collector in (
            StateCollector(nexus.lifecycle, nexus.warden, nexus.unseal, self.recovery_time),
            KeeperCollector(nexus.lifecycle, nexus.pool, nexus.warden, nexus.pool._clock),
            DiskCollector(nexus.lifecycle, nexus.audit, nexus.exporter, self.disks),
        ):
            self._registry.register(collector)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(f"shardhold_{name}", labels)

    def find_faults(self) -> set[tuple[str, str]]:
        """Return keeper and reason of each fault."""
        families = {family.name: family for family in self._registry.collect()}
        samples = families["shardhold_keeper_fault"].samples
        return {(sample.labels["keeper"], sample.labels["reason"]) for sample in samples}


@pytest.fixture
def scrape(nexus: NexusCore, tmp_path: Path) -> Scrape:
    """Scrape that nexus."""
    return Scrape(nexus, tmp_path)


def test_state_recovery_and_unseal(nexus: NexusCore, scrape: Scrape) -> None:
    """A session of custodians is seen while it is open; a recovery once it is over."""
    assert (scrape("nexus_state", state="ready"), scrape("nexus_state", state="sealed")) == (1, 0)
    assert (scrape("recovery_seconds"), scrape("unseal_session_open")) == (None, 0)
    nexus.clock.advance(4)
    scrape.recovery_time.follow(State.READY)
    nexus.seal.seal(OPERATOR, "", seconds=0)
    nexus.unseal.start(RECOVER)
    assert (scrape("nexus_state", state="ready"), scrape("nexus_state", state="sealed")) == (0, 1)
    assert (scrape("recovery_seconds"), scrape("unseal_session_open")) == (4, 1)


def test_keepers_to_spare_and_their_faults(nexus: NexusCore, scrape: Scrape, wait_until: WaitUntil) -> None:
    """As many as hold their shards beyond the threshold; a keeper with a fault is named with its reason."""
    nexus.keepers["keeper-3"].is_reachable = False
    nexus.pool.start()
    wait_until(lambda: scrape.find_faults() == {("keeper-3", "KEEPER_UNREACHABLE")})
    wait_until(lambda: scrape("keepers_spare") == 0)
    assert (scrape("keeper_faulty", keeper="keeper-1"), scrape("keeper_faulty", keeper="keeper-3")) == (0, 1)
    nexus.keepers["keeper-3"].is_reachable = True
    wait_until(lambda: scrape("keepers_spare") == 1)
    wait_until(lambda: scrape.find_faults() == set())
    nexus.seal.seal(OPERATOR, "", seconds=0)
    assert scrape("keepers_spare") is None


def test_marks_follow_the_store(nexus: NexusCore, scrape: Scrape, wait_until: WaitUntil) -> None:
    """The revision of the newest mark, and since when each keeper lacks it."""
    assert (scrape("mark_revision"), scrape("mark_age_seconds", keeper="keeper-1")) == (None, None)
    nexus.keepers["keeper-3"].mark_refusal = "has seen a newer store"
    nexus.pool.start()
    nexus.vault.put(SUPERUSER, "team/a", {"a": b"b"}, Expected(), os.urandom(16))
    wait_until(lambda: scrape("mark_revision") == scrape("store_revision"))
    wait_until(lambda: scrape("mark_age_seconds", keeper="keeper-1") is not None)
    wait_until(lambda: scrape.find_faults() == {("keeper-3", "INVALID_ARGUMENT")})
    assert scrape("mark_age_seconds", keeper="keeper-3") is None


def test_audit_and_disks(nexus: NexusCore, scrape: Scrape) -> None:
    """What waits for the files, how often they failed, and what room they have; nothing of a disk not looked at."""
    nexus.vault.put(SUPERUSER, "team/a", {"a": b"b"}, Expected(), os.urandom(16))
    assert (scrape("audit_waiting_entries"), scrape("audit_failing"), scrape("audit_failures_total")) == (1, 0, 0)
    nexus.exporter.export()
    assert scrape("audit_waiting_entries") == 0
    with nexus.audit_failing():
        assert (scrape("audit_failing"), scrape("audit_failures_total")) == (1, 1)
    assert scrape("folder_bytes", folder="audit") is None
    scrape.disks.look()
    for name in ("folder_bytes", "disk_free_bytes", "disk_bytes"):
        assert (scrape(name, folder="audit") or 0) > 0
