"""Init, every wrong turn: what is refused, what fails, and what that leaves."""

from dataclasses import replace

import pytest

from common.errors import (
    AuditUnavailableError,
    DeniedError,
    InvalidArgumentError,
    OutcomeUnknownError,
    StoreUnavailableError,
    WordsError,
    WrongStateError,
)
from common.keys.protected import ProtectedMemory
from common.keys.recovery_key import ShareHash, hash_share
from nexus.access.gate import Caller
from nexus.admin.initialise import InitPlan, make_recovery
from nexus.lifecycle.states import State
from nexus.store.protocol import ControlRow, Phase, Writer
from tests.nexus.cluster import is_wiped
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.founder import PUBLIC_KEY, RECOVERY, answer, begin, confirm, load


def _secret(writer: Writer) -> None:
    writer.save_control(ControlRow("policy", "left", b"{}", bytes(32)))


def _initialised(writer: Writer) -> None:
    writer.save_meta(replace(writer.load_meta(), phase=Phase.INITIALISED))


@pytest.mark.parametrize("change", [_secret, _initialised], ids=["holds something", "was initialised"])
def test_a_store_that_is_not_empty_never_gets_a_new_root_key(core: NexusCore, change: object) -> None:
    """A store that is not empty is refused in every state, and no number is used up."""
    core.store.write(change)  # type: ignore[arg-type]
    with pytest.raises(WrongStateError, match="not empty|initialised already"):
        begin(core)
    assert load(core.store)[0].last_generation == 0


@pytest.mark.parametrize("change", [_secret, _initialised], ids=["holds something", "was initialised"])
def test_a_store_that_filled_since_begin_gets_no_root_key(core: NexusCore, change: object) -> None:
    """The change itself looks again."""
    begun = begin(core)
    core.store.write(change)  # type: ignore[arg-type]
    with pytest.raises(WrongStateError, match="not as this attempt left it"):
        confirm(core, begun)
    assert core.lifecycle.state is State.INITIALISING


@pytest.mark.parametrize("flag", ["cannot_commit", "cannot_audit"])
def test_a_commit_that_fails_keeps_the_attempt(
    core: NexusCore, failing: FailingStore, memory: ProtectedMemory, flag: str
) -> None:
    """Nothing is in the store and no keeper got a shard; the same answer commits later."""
    begun = begin(core)
    setattr(failing, flag, True)
    with pytest.raises(StoreUnavailableError):
        confirm(core, begun)
    assert load(failing) == (load(failing)[0], {})
    assert core.lifecycle.state is State.INITIALISING
    assert all(keeper.count("put_shard") == 0 for keeper in core.keepers.values())
    setattr(failing, flag, False)
    confirm(core, begun)
    core.pool.stop()
    core.lifecycle.wipe()
    assert is_wiped(memory)


def test_a_commit_of_unknown_outcome_ends_the_process(core: NexusCore, failing: FailingStore) -> None:
    """It answers neither yes nor no, and only a new start can tell."""
    begun = begin(core)
    failing.forgets_outcome = True
    with pytest.raises(OutcomeUnknownError):
        confirm(core, begun)
    assert len(core.failures) == 1
    assert core.lifecycle.state is State.INITIALISING


def test_a_begin_that_is_not_committed_leaves_the_attempt_before(core: NexusCore, failing: FailingStore) -> None:
    """Only a new attempt voids an old one."""
    first = begin(core)
    failing.cannot_commit = True
    with pytest.raises(StoreUnavailableError):
        begin(core)
    failing.cannot_commit = False
    assert confirm(core, first).keepers_filled == 3


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        pytest.param(
            InitPlan(1, RECOVERY), InvalidArgumentError, "shard_threshold: got 1, want 2 to 3", id="t too low"
        ),
        pytest.param(InitPlan(4, RECOVERY), InvalidArgumentError, "shard_threshold: got 4", id="t above n"),
        pytest.param(
            InitPlan(0, make_recovery(PUBLIC_KEY[:-1], 2, [hash_share(b"1"), hash_share(b"2")])),
            InvalidArgumentError,
            "recovery public key: got 1215",
            id="short public key",
        ),
        pytest.param(
            InitPlan(0, make_recovery(b"\xff" * 1216, 2, [hash_share(b"1"), hash_share(b"2")])),
            InvalidArgumentError,
            "recovery public key",
            id="no public key",
        ),
        pytest.param(
            InitPlan(0, make_recovery(PUBLIC_KEY, 3, [hash_share(b"1"), hash_share(b"2")])),
            (InvalidArgumentError, WordsError),
            "",
            id="more shares needed than made",
        ),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    core: NexusCore, plan: InitPlan, error: type[Exception], message: str
) -> None:
    """Field and limit are named; nothing has begun."""
    with pytest.raises(error, match=message or "want"):
        begin(core, plan)
    assert core.lifecycle.state is State.UNINITIALISED
    assert load(core.store)[0].last_init_attempt == 0


def test_share_hashes_of_the_wrong_size_are_refused() -> None:
    """The number of the share is named."""
    with pytest.raises(InvalidArgumentError, match=r"share_hashes\[2\]: got 3 and 32 bytes"):
        make_recovery(PUBLIC_KEY, 2, [ShareHash(bytes(16), bytes(32)), ShareHash(b"abc", bytes(32))])


@pytest.mark.parametrize("caller", [OPERATOR, RECOVER, AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_a_superuser_initialises(core: NexusCore, caller: Caller) -> None:
    """A denial says nothing of how many keepers there are; it is audited."""
    with pytest.raises(DeniedError, match="role superuser"):
        begin(core, InitPlan(99, RECOVERY), caller)
    begun = begin(core)
    with pytest.raises(DeniedError):
        core.initialisation.confirm(caller, begun.attempt, answer(begun), seconds=0)
    with pytest.raises(DeniedError):
        core.initialisation.abort(caller, begun.attempt)
    denied = [entry.action for entry in core.list_entries() if entry.decision == "deny"]
    assert denied == ["init.begin", "init.confirm", "init.abort"]


def test_each_step_is_audited(core: NexusCore) -> None:
    """Confirm in its change, with the new key; all that comes before there is a key beside the store."""
    first = begin(core)
    with pytest.raises(InvalidArgumentError):
        confirm(core, first, bytes(32))
    core.initialisation.abort(SUPERUSER, 1)
    confirm(core, begin(core))
    assert [(entry.action, entry.detail) for _, entry in core.list_change_entries()] == [
        ("init.confirm", "attempt 2"),
    ]
    assert [(entry.action, entry.outcome, entry.detail) for entry in core.list_entries()] == [
        ("init.begin", "ok", "attempt 1"),
        ("init.confirm", "INVALID_ARGUMENT", ""),
        ("init.abort", "ok", "attempt 1"),
        ("init.begin", "ok", "attempt 2"),
    ]


def test_an_abort_works_when_the_audit_cannot_be_written(core: NexusCore) -> None:
    """Its entry takes the room kept for that (design §8)."""
    begun = begin(core)
    with core.audit_failing():
        core.initialisation.abort(SUPERUSER, begun.attempt)
        with pytest.raises(AuditUnavailableError):
            core.initialisation.confirm(SUPERUSER, begun.attempt, bytes(32), seconds=0)
    assert [entry.action for entry in core.list_entries()] == ["init.begin", "init.abort"]
