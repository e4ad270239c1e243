"""In which order files of tests start: the long ones first, so that two workers end at nearly the same time."""

import pytest

# Longest first; all others take less than half a minute on an idle machine.
LONG = (
    "test_sweeps.py",
    "test_sweeps_of_shutting.py",
    "test_operation_kills.py",
    "test_reshare.py",
    "test_operation_rollback.py",
    "test_interrupted.py",
    "test_rollback.py",
    "test_unseal.py",
    "test_clock.py",
    "test_kills.py",
    "test_tampered_store.py",
    "test_init.py",
    "test_states.py",
    "test_strangers.py",
    "test_dev.py",
    "test_canaries.py",
    "test_lying_nexus.py",
    "test_methods.py",
    "test_run.py",
    "test_secret.py",
    "test_contract.py",
    "test_store.py",
)


def put_long_first(items: list[pytest.Item]) -> None:
    """Order tests by their files; within a file, and among the other files, all stays as it was."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
