"""A fault at every call that changes a file of the nexus while it is born and filled: it dies there, or the disk fails.

The steps of its shutting and coming back are in test_sweeps_of_shutting.py, so that both run at once.
"""

import pytest

from tests.cluster.sweep import Sweep
from tests.cluster.sweep_steps import FAULTS, FILLING, SWEEPS, Calls, sweep_over

pytestmark = SWEEPS


@pytest.mark.parametrize("name", FILLING)
@pytest.mark.parametrize("fault", FAULTS)
def test_sweep(sweep: Sweep, calls: Calls, fault: str, name: str) -> None:
    """The promise holds whichever call of a step is killed or fails."""
    sweep_over(sweep, calls, fault, name)
