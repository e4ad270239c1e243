"""A plugin of pytest that writes what failed to a file, under xdist too: `-p tests.kit.failures --failures FILE`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import msgspec
import pytest

OPTION = "--failures"


@dataclass
class Failure:
    """One test that failed, whichever of its phases did."""

    test: str  # its node id
    error: str  # one line
    final: bool  # marked so, or the process that ran it ended


@dataclass
class Outcomes:
    """What a run of pytest came to."""

    failed: list[Failure] = field(default_factory=list)
    passed: int = 0  # calls, without those that were skipped
    uncollected: int = 0  # files that could not be read


def load_outcomes(file: Path) -> Outcomes:
    """Read what the plugin wrote."""
    return msgspec.json.decode(file.read_bytes(), type=Outcomes)


class Collector:
    """Hears every report; under xdist in the process that the workers report to."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._outcomes = Outcomes()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._outcomes.uncollected += report.failed

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when == "call":
            self._outcomes.passed += 1
        if not report.failed or report.nodeid in {failure.test for failure in self._outcomes.failed}:
            return
        was_run = report.when in ("setup", "call", "teardown")  # else a worker of xdist ended in it
        final = "final" in report.keywords or not was_run
        self._outcomes.failed.append(Failure(report.nodeid, _tell(report), final))

    def pytest_sessionfinish(self) -> None:
        self._file.write_bytes(msgspec.json.encode(asdict(self._outcomes)))


def _tell(report: pytest.TestReport) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    said = str(crash.message if crash else report.longrepr)
    return next((line.strip() for line in said.splitlines() if line.strip()), "")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, type=Path, help="write what failed to this file")


def pytest_configure(config: pytest.Config) -> None:
    file: Path | None = config.getoption(OPTION)
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Collector(file))
