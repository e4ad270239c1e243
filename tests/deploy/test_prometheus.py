"""The rules and the configuration for Prometheus, held to `promtool`."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.kit.patience import at_most

FOLDER = Path(__file__).parents[2] / "deploy" / "prometheus"
RULES = FOLDER / "rules.yaml"
TESTS = FOLDER / "rules_test.yaml"
NAMES = re.findall(r"- alert: (\w+)", RULES.read_text())


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it in the folder."""
    return subprocess.run(
        ["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=at_most(60), check=False
    )


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yaml")])
def test_promtool_takes_them(arguments: tuple[str, ...]) -> None:
    """The file of docker-compose.yml's Prometheus, and the rules that it names."""
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
def test_every_alert_fires_and_stays_silent_as_it_should() -> None:
    """On the series of rules_test.yaml."""
    done = promtool("test", "rules", "rules_test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(
    ("expression", "case"),
    [pytest.param("vector(0) == 1", "fires", id="never"), pytest.param("vector(1) == 1", "is silent", id="always")],
)
def test_their_tests_see_alerts_that_never_fire_or_always(expression: str, case: str, tmp_path: Path) -> None:
    """With every expression broken, the cases of every alert fail."""
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    pattern = r"(- alert: \w+\n)\s+expr: (?:>-\n.*|.*)\n(?:\s+for: \w+\n)?"
    broken, count = re.subn(pattern, rf"\1        expr: {expression}\n", RULES.read_text())
    assert count == len(NAMES)
    (tmp_path / RULES.name).write_text(broken)
    done = promtool("test", "rules", str(tmp_path / TESTS.name))
    assert done.returncode != 0
    assert [name for name in NAMES if f"name: {name} {case} " not in done.stdout + done.stderr] == []


def test_every_alert_has_a_case_that_fires_and_one_that_is_silent() -> None:
    """In the names of the cases, in the order of the rules."""
    cases = re.findall(r"- name: (\w+) (fires|is silent) ", TESTS.read_text())
    assert list(dict.fromkeys(cases)) == [(name, outcome) for name in NAMES for outcome in ("fires", "is silent")]
