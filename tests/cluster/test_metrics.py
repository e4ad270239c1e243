"""docs/metrics.md and a real scrape say the same, alerts ask for what there is, and a healthy restart is quiet."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.waiting import WAIT_S

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text()
RULES = (ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()
# What no sample of a healthy cluster shows.
LABELS = {"shardhold_keeper_fault": ("keeper", "reason")}
LOUD = {"warning", "error", "critical"}


@dataclass(frozen=True)
class Row:
    """What is said of one metric."""

    kind: str
    labels: tuple[str, ...]
    meaning: str


def read_table(heading: str) -> dict[str, Row]:
    """Read the table under a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    return {
        name.strip("`"): Row(kind, tuple(re.findall("`([a-z]+)`", labels)), text) for name, kind, labels, text in cells
    }


def read_scrape(text: str) -> dict[str, Row]:
    """Read the same from what a server answers."""
    rows = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        rows[name] = Row(family.type, tuple(sorted(labels)) or LABELS.get(name, ()), family.documentation)
    return rows


def read_samples(cluster: Cluster, name: str) -> Mapping[str, float]:
    """Scrape a server; return the values by metric and labels, as in the text."""
    lines = [line.rpartition(" ") for line in cluster.fetch(name, "/metrics").splitlines() if line[:1] != "#"]
    return {sample: float(value) for sample, _, value in lines}


def ask_health(cluster: Cluster, name: str) -> None:
    """Ask a server how it is, as a container does."""
    program = "nexus" if name == "nexus" else "keeper"
    command = [sys.executable, "-m", program, "health", "--config", str(cluster.directory.config(name))]
    subprocess.run(command, check=True, capture_output=True, timeout=at_most(WAIT_S))


@pytest.mark.parametrize(("name", "heading"), [("nexus", "Nexus"), ("keeper-1", "Keeper")])
def test_the_page_names_every_metric_as_it_is(cluster: Cluster, name: str, heading: str) -> None:
    """With type, labels and meaning, and none that is not there."""
    ask_health(cluster, name)  # so that each kind of metric has a sample
    cluster.superuser.get_status()
    cluster.wait("disks are measured", lambda: name != "nexus" or "_disk_bytes{" in cluster.fetch(name, "/metrics"))
    assert read_scrape(cluster.fetch(name, "/metrics")) == read_table("Nexus and keeper") | read_table(heading)


def test_alerts_ask_for_metrics_that_there_are() -> None:
    """A misspelt one would stay silent for ever; the page names each alert."""
    expressions = re.findall(r"expr: (?:>-\n\s+)?(.+)", RULES)
    asked = {name for expression in expressions for name in re.findall(r"\b(?:shardhold|process)_\w+", expression)}
    known = read_table("Nexus and keeper") | read_table("Nexus") | read_table("Keeper")
    assert len(asked) >= 12
    assert asked <= known.keys()
    alerts = re.findall(r"- alert: (\w+)", RULES)
    severities = re.findall(r"severity: (\w+)", RULES)
    assert re.findall(r"^\| `(Shardhold\w+)` \| (\w+) \|", PAGE, flags=re.M) == list(
        zip(alerts, severities, strict=True)
    )


def test_a_healthy_cluster_by_its_metrics(cluster: Cluster) -> None:
    """Keepers to spare, fresh marks and an SVID with some life left; calls and probes each in their place."""
    cluster.wait_filled()
    cluster.superuser.get_status()
    ask_health(cluster, "nexus")
    samples = read_samples(cluster, "nexus")
    assert samples['shardhold_nexus_state{state="ready"}'] == 1
    assert samples["shardhold_keepers_spare"] == 2
    assert max(samples[f'shardhold_mark_age_seconds{{keeper="{name}"}}'] for name in cluster.keepers) < at_most(30)
    assert samples["shardhold_svid_expiry_timestamp_seconds"] > time.time()
    assert samples['shardhold_connections{port="main"}'] >= 1
    assert samples['shardhold_probes_total{code="OK",probe="Check"}'] >= 1
    assert samples['shardhold_calls_total{code="OK",rpc="GetStatus"}'] >= 1
    assert samples["process_resident_memory_bytes"] > 1 << 20
    assert not [name for name in samples if 'rpc="Check"' in name]


def test_a_healthy_restart_is_quiet(cluster: Cluster) -> None:
    """Nexus and a keeper end and come back, one after the other, and nobody's log has a warning of it."""
    names = ("nexus", *cluster.keepers)
    seen = {name: len(cluster.directory.log(name).read_text()) for name in names}
    cluster.wait_filled()
    cluster.stop("nexus")
    cluster.start_nexus()
    cluster.wait_filled()
    cluster.stop("nexus", "keeper-1")  # a nexus that runs would rightly warn that a keeper does not answer
    cluster.run("keeper-1")
    cluster.start_nexus()
    cluster.wait_filled()
    logs = {name: cluster.directory.log(name).read_text()[seen[name] :].splitlines() for name in names}
    assert min(len(logs[name]) for name in ("nexus", "keeper-1")) > 3
    assert [line for lines in logs.values() for line in lines if json.loads(line)["level"] in LOUD] == []
    assert 0 < read_samples(cluster, "nexus")["shardhold_recovery_seconds"] < at_most(30)
