"""How long the fuzzing tests run: short and repeatable in `make test`, long and always new in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES_VARIABLE = "FUZZ_EXAMPLES"  # examples of an ordinary target; unset: the short, repeatable run
_SHORT = 20

_examples = int(os.environ.get(EXAMPLES_VARIABLE, "0"))


def budget(share: float = 1.0) -> settings:
    """Return the settings of one target; *share* scales the number of examples where each costs more or less."""
    count = max(1, int((_examples or _SHORT) * share))
    tolerated = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, suppress_health_check=tolerated)
