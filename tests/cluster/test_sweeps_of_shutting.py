"""A fault at every call that changes a file of the nexus while it is shut and comes back, as test_sweeps.py has it."""

import pytest

from tests.cluster.sweep import Sweep
from tests.cluster.sweep_steps import FAULTS, SHUTTING, SWEEPS, Calls, sweep_over

pytestmark = SWEEPS


@pytest.mark.parametrize("name", SHUTTING)
@pytest.mark.parametrize("fault", FAULTS)
def test_sweep(sweep: Sweep, calls: Calls, fault: str, name: str) -> None:
    """The promise holds whichever call of a step is killed or fails."""
    sweep_over(sweep, calls, fault, name)
