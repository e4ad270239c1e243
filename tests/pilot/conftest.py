"""What pilot's tests share: an authority, a played nexus, and an identity."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pilot.dev.ca import DevelopmentCA
from tests.pilot.played_nexus import CUSTODIAN_PATH, PlayedNexus, write_svid


@pytest.fixture(scope="session")
def ca() -> DevelopmentCA:
    """Return the authority of example.test."""
    return DevelopmentCA("example.test")


@pytest.fixture
def nexus(ca: DevelopmentCA) -> Iterator[PlayedNexus]:
    """Play a sealed nexus."""
    nexus = PlayedNexus(ca)
    yield nexus
    nexus.stop()


@pytest.fixture
def svid_dir(ca: DevelopmentCA, tmp_path: Path) -> Path:
    """Return the SVID of a custodian, as files."""
    return write_svid(tmp_path / "svid", ca.issue(CUSTODIAN_PATH))
