"""`nexus restore` asks for the passphrase of an identity file, and says in one line why it stopped."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.errors import StoreUnavailableError
from common.keys.protected_file import protect
from nexus.server.restore import check_owner
from tests.kit.transcript import ROOT, Transcript, run_program_at_terminal

PASSPHRASE = "seven tired herons, 4 boats"
CHEAP = 10  # only for testing


def restore(folder: Path, typed: str) -> Transcript:
    """Restore from a backup that is not there, with an identity that is protected; type *typed* for its passphrase."""
    identity = folder / "identity.age"
    identity.write_bytes(protect(b"# nothing\n", PASSPHRASE.encode(), work=CHEAP))
    config = ROOT / "deploy" / "sample" / "nexus.toml"
    return run_program_at_terminal(
        *(sys.executable, "-m", "nexus", "restore", "--config", config),
        *("--from", folder / "backup.age", "--identity", identity, "--genesis", "ab" * 32),
        environ={"SHARDHOLD_NEXUS__STORAGE__PATH": str(folder / "none" / "nexus.db")},
        script=[(f"passphrase of {identity}: ", typed)],
    )


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        pytest.param(PASSPHRASE, 1, "store ", id="the right one: it goes on"),
        pytest.param("another", 1, "the passphrase does not open the identity file", id="another one"),
        pytest.param("\x04", 1, "no passphrase was given", id="end of file"),
        pytest.param("\x03", 130, "interrupted", id="Ctrl-C"),
    ],
)
def test_a_passphrase_is_asked_for(tmp_path: Path, typed: str, code: int, said: str) -> None:
    """Never by a traceback."""
    told = restore(tmp_path, typed)
    assert (told.code, told.out) == (code, "")
    assert f"nexus: error: {said}" in told.err.replace(f"{tmp_path}/identity.age: ", "")
    assert "Traceback" not in told.err
    assert PASSPHRASE not in told.err


@pytest.mark.parametrize(
    ("owner", "user", "is_right"),
    [
        pytest.param(990, 990, True, id="the user of the nexus"),
        pytest.param(0, 0, True, id="root's own"),
        pytest.param(990, 0, False, id="root in a folder of the nexus"),
    ],
)
def test_root_leaves_no_store_that_the_nexus_cannot_open(
    tmp_path: Path, owner: int, user: int, *, is_right: bool
) -> None:
    """The folder says whose store it is."""
    with nullcontext() if is_right else pytest.raises(StoreUnavailableError, match="belongs to user 990"):
        check_owner(tmp_path, owner=owner, user=user)
