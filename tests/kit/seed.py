"""Where chance in tests comes from: one seed, `TEST_SEED`, the same in every run unless somebody gives another.

`make soak` takes a new one each time. What it finds becomes a case with a name.
"""

import os
import random

VARIABLE = "TEST_SEED"
SEED = os.environ.get(VARIABLE, "20261128")


def make_random(name: object) -> random.Random:
    """Return a source of random numbers that only the seed and *name* decide; it says so where a failure is shown."""
    print(f"chance {name}: {VARIABLE}={SEED}")
    return random.Random(f"{SEED} {name}")
