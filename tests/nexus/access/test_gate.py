"""The gate: nothing passes without an authorisation and an audit entry."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from common.clock import to_micros
from common.errors import (
    AuditUnavailableError,
    ConflictError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    RecoveringError,
    SealedError,
    StoreUnavailableError,
    WrongStateError,
)
from nexus.access import calls
from nexus.access.gate import Caller, Gate
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import Store
from nexus.vault.expected import Expected
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, STRANGER, SUPERUSER, NexusCore
from tests.nexus.failing_store import FailingStore

ANY = Expected()
PATH = "team/app/db"
APP_POLICY = Policy(
    name="app", spiffe_ids=(APP.spiffe_id,), paths=("team/app/**",), permissions=(Permission.READ, Permission.WRITE)
)
FOR_EVERYBODY = Policy(
    name="everybody", spiffe_ids=("spiffe://example.org/**",), paths=("**",), permissions=tuple(Permission)
)


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may read and write below team/app."""
    return make_nexus(APP_POLICY)


def put(nexus: NexusCore, caller: Caller = APP, path: str = PATH, value: bytes = b"v") -> None:
    nexus.vault.put(caller, path, {"value": value}, ANY, os.urandom(16))


def test_a_read_leaves_one_entry_that_says_who_did_what_by_which_policy(nexus: NexusCore) -> None:
    """The entry of a read holds neither a value nor a field name."""
    nexus.vault.put(APP, PATH, {"name-canary": b"value-canary"}, ANY, os.urandom(16))
    nexus.vault.get(APP, PATH, 0)
    (entry,) = nexus.list_entries()
    assert (entry.actor, entry.action, entry.path) == (APP.spiffe_id, "secret.read", PATH)
    assert (entry.version, entry.policy, entry.decision, entry.outcome) == (1, "app", "allow", "ok")
    assert entry.address == APP.address
    assert entry.at == to_micros(nexus.clock.now())
    written = b"".join(path.read_bytes() for path in nexus.folder.glob("*.jsonl"))
    assert b"canary" not in written
    assert "canary" not in "".join(str(entry) for _, entry in nexus.list_change_entries())


def test_a_change_has_its_entry_in_its_own_transaction_and_nowhere_else(nexus: NexusCore) -> None:
    """Under the revision of the change; nothing is written beside it."""
    made = nexus.vault.put(APP, PATH, {"value": b"v"}, ANY, request_id := os.urandom(16))
    ((revision, entry),) = nexus.list_change_entries()
    assert revision == made.revision
    assert (entry.actor, entry.action, entry.path) == (APP.spiffe_id, "secret.write", PATH)
    assert (entry.version, entry.policy, entry.outcome) == (1, "app", "ok")
    assert entry.request_id == request_id.hex()
    assert nexus.list_entries() == []


def test_a_change_that_fails_leaves_an_entry_with_its_reason_and_none_in_the_store(nexus: NexusCore) -> None:
    """A change that fails leaves its entry in the files, as a read does."""
    put(nexus)
    with pytest.raises(ConflictError):
        nexus.vault.put(APP, PATH, {"value": b"v"}, Expected(7), os.urandom(16))
    assert len(nexus.list_change_entries()) == 1
    (entry,) = nexus.list_entries()
    assert (entry.action, entry.decision, entry.outcome) == ("secret.write", "allow", "VERSION_CONFLICT")


def test_a_request_that_is_sent_again_leaves_an_entry_that_says_so(nexus: NexusCore) -> None:
    """It is no change, so the entry is like that of a read."""
    request_id = os.urandom(16)
    for _ in range(2):
        nexus.vault.put(APP, PATH, {"value": b"v"}, ANY, request_id)
    assert len(nexus.list_change_entries()) == 1
    (entry,) = nexus.list_entries()
    assert (entry.action, entry.outcome, entry.version) == ("secret.write", "ok", 0)
    assert entry.detail == "repeated request"


Act = Callable[[NexusCore, Caller, str], object]
CALLS: dict[str, tuple[str, Act]] = {
    "get": ("read", lambda nexus, caller, path: nexus.vault.get(caller, path, 0)),
    "put": ("write", lambda nexus, caller, path: put(nexus, caller, path)),
    "delete": ("delete", lambda nexus, caller, path: nexus.vault.delete(caller, path, (), ANY, os.urandom(16))),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_denial_is_audited_and_looks_the_same_whether_the_secret_exists(nexus: NexusCore, call: str) -> None:
    """It names the caller's own ID and the permission it lacks, and nothing else."""
    put(nexus)
    permission, act = CALLS[call]
    messages = []
    for path in (PATH, "team/app/none"):
        with pytest.raises(DeniedError) as denied:
            act(nexus, STRANGER, path)
        messages.append(str(denied.value))
    assert messages[0] == messages[1]
    assert STRANGER.spiffe_id in messages[0]
    assert permission in messages[0]
    entries = nexus.list_entries()
    assert [(entry.actor, entry.action, entry.path) for entry in entries] == [
        (STRANGER.spiffe_id, f"secret.{permission}", path) for path in (PATH, "team/app/none")
    ]
    assert {(entry.decision, entry.outcome, entry.policy) for entry in entries} == {("deny", "DENIED", "")}
    assert len(nexus.list_change_entries()) == 1


def test_a_secret_that_is_not_there_is_not_found_only_for_who_may_read(nexus: NexusCore) -> None:
    """The read of a missing secret is audited with its outcome."""
    with pytest.raises(NotFoundError):
        nexus.vault.get(APP, PATH, 0)
    (entry,) = nexus.list_entries()
    assert (entry.decision, entry.outcome, entry.version) == ("allow", "NOT_FOUND", 0)


@pytest.mark.parametrize("caller", [OPERATOR, RECOVER, AUDITOR, NEXUS, KEEPER], ids=lambda caller: caller.role)
def test_no_other_role_touches_a_secret_even_when_a_policy_allows_everybody_everything(
    make_nexus: MakeNexus, caller: Caller
) -> None:
    """Only workloads and superusers are a matter of policies."""
    nexus = make_nexus(FOR_EVERYBODY)
    put(nexus)
    for permission, act in CALLS.values():
        with pytest.raises(DeniedError, match=permission):
            act(nexus, caller, PATH)
    with pytest.raises(DeniedError, match="list"):
        nexus.vault.list(caller, "", after="", limit=0)
    assert [entry.decision for entry in nexus.list_entries()] == ["deny"] * 4


def test_a_superuser_reads_only_by_a_policy(make_nexus: MakeNexus) -> None:
    """The first policy is visible and can be removed; then a superuser reads nothing."""
    nexus = make_nexus(FOR_EVERYBODY)
    put(nexus)
    nexus.vault.get(SUPERUSER, PATH, 0)
    nexus.policies.delete(SUPERUSER, "superusers")
    nexus.policies.delete(SUPERUSER, "everybody")
    with pytest.raises(DeniedError):
        nexus.vault.get(SUPERUSER, PATH, 0)


def test_a_listing_is_audited(nexus: NexusCore) -> None:
    """A listing is audited with its prefix, and denied to a caller whom no policy lets list anything."""
    nexus.vault.list(SUPERUSER, "team", after="", limit=0)
    with pytest.raises(DeniedError):
        nexus.vault.list(STRANGER, "team", after="", limit=0)
    asked, denied = nexus.list_entries()
    assert (asked.action, asked.path, asked.outcome) == ("secret.list", "team", "ok")
    assert (denied.action, denied.path, denied.decision) == ("secret.list", "team", "deny")


def test_no_value_goes_out_when_the_audit_cannot_be_written(nexus: NexusCore) -> None:
    """Reads, listings and denials fail closed; so does a repeated request."""
    request_id = os.urandom(16)
    nexus.vault.put(APP, PATH, {"value": b"v"}, ANY, request_id)
    with nexus.audit_failing():
        for refused in (
            lambda: nexus.vault.get(APP, PATH, 0),
            lambda: nexus.vault.get(STRANGER, PATH, 0),
            lambda: nexus.vault.list(APP, "", after="", limit=0),
            lambda: nexus.vault.put(APP, PATH, {"value": b"v"}, ANY, request_id),
            lambda: nexus.policies.list(SUPERUSER),
            lambda: nexus.policies.list(APP),
            lambda: nexus.status.list_keepers(OPERATOR),
        ):
            with pytest.raises(AuditUnavailableError):
                refused()
    assert nexus.list_entries() == []


def test_a_denied_call_takes_nothing_from_the_reserve(nexus: NexusCore) -> None:
    """Denials must not use up the reserve that status, seal and abort need, or any workload could."""
    before = len(nexus.list_entries())
    with nexus.audit_failing():
        with pytest.raises(AuditUnavailableError):
            nexus.seal.seal(APP, "", seconds=0)
        assert len(nexus.list_entries()) == before
    assert nexus.lifecycle.state is State.READY


def test_status_is_told_from_the_reserve_when_the_audit_cannot_be_written(nexus: NexusCore) -> None:
    """To see what is wrong has to work then, for people: workloads could use up the room kept for these entries."""
    with nexus.audit_failing():
        with pytest.raises(AuditUnavailableError):
            nexus.status.describe(APP)
        assert nexus.status.describe(OPERATOR)[0] is State.READY
    assert [entry.action for entry in nexus.list_entries()] == ["status.get"]


@pytest.mark.parametrize("flag", ["cannot_audit", "cannot_commit"])
def test_a_change_and_its_entry_are_made_both_or_none(make_nexus: MakeNexus, store: Store, flag: str) -> None:
    """What was not committed leaves an entry with its reason outside the store."""
    failing = FailingStore(store)
    nexus = make_nexus(APP_POLICY, store=failing)
    put(nexus)
    setattr(failing, flag, True)
    with pytest.raises(StoreUnavailableError):
        put(nexus, value=b"another")
    setattr(failing, flag, False)
    assert nexus.vault.get(APP, PATH, 0).fields == {"value": b"v"}
    assert len(nexus.list_change_entries()) == 1
    assert [entry.outcome for entry in nexus.list_entries()] == ["STORE_UNAVAILABLE", "ok"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        pytest.param(StoreUnavailableError("no"), "STORE_UNAVAILABLE", id="one of ours"),
        pytest.param(ZeroDivisionError(), "INTERNAL", id="a mistake"),
        pytest.param(KeyboardInterrupt(), "INTERNAL", id="an interrupt"),
    ],
)
def test_whatever_ends_a_call_is_in_its_entry(nexus: NexusCore, error: BaseException, outcome: str) -> None:
    """The error reaches the caller, and its reason is the outcome in the entry."""
    with pytest.raises(type(error)), nexus.gate.role_call(calls.GET_STATUS, APP):
        raise error
    (entry,) = nexus.list_entries()
    assert (entry.action, entry.outcome) == ("status.get", outcome)


def test_an_unknown_outcome_ends_the_process_and_is_not_audited_as_anything(nexus: NexusCore) -> None:
    """Only a new start can tell what happened."""
    with pytest.raises(OutcomeUnknownError), nexus.gate.role_call(calls.GET_STATUS, APP):
        raise OutcomeUnknownError("commit failed")
    assert nexus.failures == [f"status.get by {APP.spiffe_id}: commit failed"]
    assert nexus.list_entries() == []


def test_a_wrong_role_is_denied_and_audited(nexus: NexusCore) -> None:
    """The roles that would do are named."""
    with (
        pytest.raises(DeniedError, match="it needs role operator or superuser$"),
        nexus.gate.role_call(calls.SEAL, APP),
    ):
        pytest.fail("the call went on")
    (entry,) = nexus.list_entries()
    assert (entry.actor, entry.decision, entry.outcome) == (APP.spiffe_id, "deny", "DENIED")


@pytest.mark.parametrize(
    ("state", "error"),
    [
        pytest.param(State.UNINITIALISED, WrongStateError, id="uninitialised"),
        pytest.param(State.INITIALISING, WrongStateError, id="initialising"),
        pytest.param(State.RECOVERING, RecoveringError, id="recovering"),
        pytest.param(State.SEALED, SealedError, id="sealed"),
    ],
)
def test_a_call_that_the_state_refuses_touches_nothing_and_leaves_no_entry(
    core: NexusCore, state: State, error: type[Exception]
) -> None:
    """A call that the state refuses leaves no denial either: no policy was asked, since there are none."""
    gate = _in_state(core, state)
    attempts: list[Callable[[], AbstractContextManager[object]]] = [
        lambda: gate.secret_call(calls.GET_SECRET, APP, PATH),
        lambda: gate.listing_call(calls.LIST_SECRETS, APP, ""),
        lambda: gate.keyed_call(calls.LIST_POLICIES, APP),
        lambda: gate.role_call(calls.LIST_POLICIES, APP),
    ]
    for attempt in attempts:
        with pytest.raises(error), attempt():
            pytest.fail("the call went on")
    with pytest.raises(error):
        gate.require_serving()
    assert core.list_entries() == []


def _in_state(core: NexusCore, state: State) -> Gate:
    lifecycle = Lifecycle(state, on_change=core.states.append, on_failure=core.failures.append)
    return Gate(lifecycle, core.audit, core.exporter, core.clock)


def test_a_damaged_policy_stops_every_authorisation_by_policy_until_it_is_dealt_with(
    nexus: NexusCore, tmp_path: Path
) -> None:
    """Added by SQL: named, obeyed by nobody, and no workload is served until a superuser deletes it."""
    put(nexus)
    tamper(tmp_path, "INSERT INTO control VALUES ('policy', 'evil', ?, zeroblob(32))", b"{}")
    nexus.policies.apply(SUPERUSER, [APP_POLICY])
    assert nexus.policies.list(SUPERUSER).damaged == ("evil",)
    for caller in (APP, STRANGER, SUPERUSER):
        with pytest.raises(DeniedError):
            nexus.vault.get(caller, PATH, 0)
        with pytest.raises(DeniedError):
            nexus.vault.list(caller, "", after="", limit=0)
    nexus.policies.delete(SUPERUSER, "evil")
    assert nexus.vault.get(APP, PATH, 0).fields == {"value": b"v"}
    with pytest.raises(InvalidArgumentError):
        nexus.vault.get(APP, "shardhold/canary", 0)
