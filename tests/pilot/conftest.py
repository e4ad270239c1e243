"""What pilot's tests share: an authority, a played nexus, and an identity."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.played_nexus import CUSTODIAN_PATH, PlayedNexus
from tests.pilot.served_nexus import ServedNexus


@pytest.fixture(autouse=True)
def _no_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let terminals say how large they are: what runs the tests may have its own in the environment."""
    for variable in ("COLUMNS", "LINES"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session")
def ca() -> Authority:
    """Return the authority of example.test."""
    return Authority("example.test")


@pytest.fixture
def nexus(ca: Authority) -> Iterator[PlayedNexus]:
    """Play a sealed nexus."""
    nexus = PlayedNexus(ca)
    yield nexus
    nexus.stop()


@pytest.fixture
def svid_dir(ca: Authority, tmp_path: Path) -> Path:
    """Return the SVID of a custodian, as files."""
    return write_svid(tmp_path / "svid", ca.issue(CUSTODIAN_PATH))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedNexus]:
    """Serve a real nexus with an empty vault."""
    served = ServedNexus.found(tmp_path)
    yield served
    served.stop()
