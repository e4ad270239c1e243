"""Policies of a cluster: applied whole, in force at once, and safe from whoever edits the database."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from common.errors import (
    CorruptRowError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    SealedError,
    StoreLostError,
    StoreUnavailableError,
)
from nexus.access.decision import Explanation
from nexus.access.gate import Caller
from nexus.admin.policies import MAX_APPLIED, MAX_PAGE, MAX_PAGE_SIZE, Applied, PolicyPage
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission, Policy, encode_policy
from nexus.store.protocol import Store, Writer
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import (
    APP,
    AUDITOR,
    KEEPER,
    NEXUS,
    OPERATOR,
    RECOVER,
    SUPERUSER,
    NexusCore,
)
from tests.nexus.failing_store import FailingStore

READ = Permission.READ


def policy(name: str, *permissions: Permission, paths: tuple[str, ...] = ("team/**",)) -> Policy:
    return Policy(name=name, spiffe_ids=(APP.spiffe_id,), paths=paths, permissions=permissions or (READ,))


EVIL = encode_policy(policy("evil", *Permission, paths=("**",)))


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one with the policies "one" and "two"."""
    return make_nexus(policy("one"), policy("two"))


def names(nexus: NexusCore) -> list[str]:
    return [one.name for one in nexus.policies.list(SUPERUSER).policies]


def decide(nexus: NexusCore, permission: Permission = READ, path: str = "team/x") -> str | None:
    return nexus.lifecycle.require_serving().view.policies.decide(APP.spiffe_id, permission, path)


def test_what_is_applied_is_in_force_at_once(nexus: NexusCore) -> None:
    """New ones beside, and known names replaced; the answer is the revision of the change."""
    assert decide(nexus, Permission.DELETE) is None
    applied = nexus.policies.apply(SUPERUSER, [policy("new", Permission.DELETE), policy("one", paths=("other",))])
    assert (applied.unchanged, applied.warnings) == ((), ())
    assert names(nexus) == ["new", "one", "superusers", "two"]
    assert decide(nexus, Permission.DELETE) == "new"
    assert decide(nexus) == "two"
    with nexus.store.read() as reader:
        assert reader.load_meta().revision == applied.revision


def load_revision(nexus: NexusCore) -> int:
    with nexus.store.read() as reader:
        return reader.load_meta().revision


def test_what_is_in_force_as_given_is_not_applied_again(nexus: NexusCore) -> None:
    """No revision and no row: the call is audited like a read, which says what it found."""
    before = load_revision(nexus)
    applied = nexus.policies.apply(SUPERUSER, [policy("two"), policy("one")])
    assert applied == Applied(before, ("two", "one"), ())
    assert load_revision(nexus) == before
    assert nexus.list_change_entries() == []
    assert [(entry.action, entry.outcome, entry.detail) for entry in nexus.list_entries()] == [
        ("policy.apply", "ok", "unchanged: two one")
    ]


def test_only_what_differs_is_applied(nexus: NexusCore) -> None:
    """The entry of the change names it, and the answer what was left."""
    before = load_revision(nexus)
    applied = nexus.policies.apply(SUPERUSER, [policy("one"), policy("two", paths=("other",)), policy("new")])
    assert applied == Applied(before + 1, ("one",), ())
    assert [entry.detail for _, entry in nexus.list_change_entries()] == ["two new"]
    assert nexus.policies.get(SUPERUSER, "two") == policy("two", paths=("other",))


def test_nothing_is_said_to_be_in_force_in_a_store_that_was_put_back(nexus: NexusCore, tmp_path: Path) -> None:
    """What is compared is what the store holds now, if it is what this nexus left there."""
    tamper(tmp_path, "UPDATE meta SET revision = revision - 1")
    with pytest.raises(StoreLostError):
        nexus.policies.apply(SUPERUSER, [policy("one")])


class WatchedStore(FailingStore):
    """Calls *at_controls* when a change loads the control rows."""

    at_controls: Callable[[], object] = staticmethod(lambda: None)

    def write(self, change: Callable[[Writer], Any], **how: Any) -> Any:
        return super().write(lambda writer: change(cast(Writer, _Watched(writer, self.at_controls))), **how)


class _Watched:
    def __init__(self, writer: Writer, at_controls: Callable[[], object]) -> None:
        self._writer = writer
        self._at_controls = at_controls

    def load_controls(self) -> object:
        self._at_controls()
        return self._writer.load_controls()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@pytest.mark.parametrize("paths", [("team/**",), ("other",)], ids=["unchanged", "changed"])
def test_keys_that_were_withdrawn_prove_nothing(make_nexus: MakeNexus, store: Store, paths: tuple[str, ...]) -> None:
    """Whether something was to change or not: a seal did not wait for the call."""
    watched = WatchedStore(store)
    nexus = make_nexus(policy("one"), store=watched)
    watched.at_controls = lambda: nexus.lifecycle.withdraw(State.SEALED, seconds=0)
    with pytest.raises(SealedError):
        nexus.policies.apply(SUPERUSER, [policy("one", paths=paths)])
    assert nexus.list_change_entries() == []


def test_while_a_policy_is_damaged_all_are_applied(nexus: NexusCore, tmp_path: Path) -> None:
    """The change puts in force that one is damaged, which an answer "unchanged" would leave unnoticed."""
    tamper(tmp_path, "INSERT INTO control VALUES ('policy', 'evil', ?, zeroblob(32))", EVIL)
    before = load_revision(nexus)
    assert nexus.policies.apply(SUPERUSER, [policy("one")]) == Applied(before + 1, (), ())
    assert nexus.policies.list(SUPERUSER).damaged == ("evil",)


def test_what_was_damaged_and_put_back_is_in_force_again_when_it_is_applied(nexus: NexusCore, tmp_path: Path) -> None:
    """No policy counted while one was damaged: what is stored is as given, and yet not in force."""
    with closing(sqlite3.connect(tmp_path / "nexus.db")) as database:
        (body,) = database.execute("SELECT body FROM control WHERE name = 'one'").fetchone()
    tamper(tmp_path, "UPDATE control SET body = ? WHERE name = 'one'", EVIL)
    nexus.policies.apply(SUPERUSER, [policy("two")])
    tamper(tmp_path, "UPDATE control SET body = ? WHERE name = 'one'", body)
    assert nexus.policies.list(SUPERUSER).damaged == ("one",)
    assert nexus.policies.apply(SUPERUSER, [policy("one")]).unchanged == ()
    assert nexus.policies.list(SUPERUSER).damaged == ()
    assert nexus.policies.explain(SUPERUSER, APP.spiffe_id, READ, "team/x").policies == ("one", "two")


def test_one_policy_is_got_by_its_name(nexus: NexusCore) -> None:
    """As it was applied; the audit says which."""
    assert nexus.policies.get(AUDITOR, "two") == policy("two")
    with pytest.raises(NotFoundError, match="no policy absent"):
        nexus.policies.get(AUDITOR, "absent")
    with pytest.raises(InvalidArgumentError, match="policy name"):
        nexus.policies.get(AUDITOR, "No Name")
    entries = [(entry.action, entry.outcome, entry.detail) for entry in nexus.list_entries()]
    assert entries[:2] == [("policy.get", "ok", "two"), ("policy.get", "NOT_FOUND", "absent")]


def test_access_is_explained_and_audited(nexus: NexusCore) -> None:
    """What was asked, about whom, stands in the entry; `tests/nexus/access/test_decision.py` has what is answered."""
    explained = nexus.policies.explain(AUDITOR, APP.spiffe_id, READ, "team/x")
    assert explained == Explanation(("one", "two"), "allowed by policies one, two")
    assert [(entry.action, entry.path, entry.detail) for entry in nexus.list_entries()] == [
        ("policy.explain", "team/x", f"read by {APP.spiffe_id}")
    ]
    for wrong in ({"spiffe_id": "spiffe://x/*"}, {"path": "team/../x"}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            nexus.policies.explain(
                **({"caller": AUDITOR, "spiffe_id": APP.spiffe_id, "permission": READ, "path": "x"} | wrong)  # type: ignore[arg-type]
            )


def test_what_is_deleted_is_out_of_force_at_once(nexus: NexusCore) -> None:
    """The other policies stay."""
    nexus.policies.delete(SUPERUSER, "one")
    assert decide(nexus) == "two"
    nexus.policies.delete(SUPERUSER, "two")
    assert decide(nexus) is None
    assert names(nexus) == ["superusers"]
    with pytest.raises(NotFoundError, match="two"):
        nexus.policies.delete(SUPERUSER, "two")


def test_changes_are_audited_in_their_transaction_and_lists_as_reads(nexus: NexusCore) -> None:
    """The entry of a change names the policies that it changed."""
    nexus.policies.apply(SUPERUSER, [policy("b"), policy("a")])
    nexus.policies.delete(SUPERUSER, "a")
    nexus.policies.list(AUDITOR)
    changes = [entry for _, entry in nexus.list_change_entries()]
    assert [(entry.action, entry.detail, entry.outcome) for entry in changes] == [
        ("policy.apply", "b a", "ok"),
        ("policy.delete", "a", "ok"),
    ]
    assert [(entry.actor, entry.action) for entry in nexus.list_entries()] == [(AUDITOR.spiffe_id, "policy.list")]


@pytest.mark.parametrize("caller", [OPERATOR, RECOVER, AUDITOR, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_a_superuser_changes_policies(nexus: NexusCore, caller: Caller) -> None:
    """A denial is audited, and nothing changes."""
    with pytest.raises(DeniedError, match="role superuser"):
        nexus.policies.apply(caller, [policy("mine")])
    with pytest.raises(DeniedError, match="role superuser"):
        nexus.policies.delete(caller, "one")
    if caller is AUDITOR:
        nexus.policies.list(caller)
    else:
        with pytest.raises(DeniedError, match="auditor or superuser"):
            nexus.policies.list(caller)
        with pytest.raises(DeniedError, match="auditor or superuser"):
            nexus.policies.get(caller, "one")
        with pytest.raises(DeniedError, match="auditor or superuser"):
            nexus.policies.explain(caller, APP.spiffe_id, READ, "team/x")
    assert nexus.list_change_entries() == []
    assert [entry.decision for entry in nexus.list_entries()][:2] == ["deny", "deny"]
    assert names(nexus) == ["one", "superusers", "two"]


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        pytest.param([], "got 0", id="none"),
        pytest.param([policy(f"p{i}") for i in range(MAX_APPLIED + 1)], "got 101", id="too many"),
        pytest.param([policy("a"), policy("a")], "two have one name", id="one name twice"),
        pytest.param([policy("good"), policy("Bad Name")], "policy name", id="wrong name"),
        pytest.param([policy("good"), policy("bad", paths=("a/**b",))], "policy bad: paths", id="wrong glob"),
    ],
)
def test_wrong_policies_are_refused_all_of_them(nexus: NexusCore, policies: list[Policy], message: str) -> None:
    """Policy, field and limit are named."""
    with pytest.raises(InvalidArgumentError, match=message):
        nexus.policies.apply(SUPERUSER, policies)
    assert names(nexus) == ["one", "superusers", "two"]


@pytest.mark.parametrize("name", ["", "Evil", "a" * 65, "../x"])
def test_a_name_that_no_policy_can_have_is_refused(nexus: NexusCore, name: str) -> None:
    """A name that no policy can have is accepted only for a damaged row, which must be deletable."""
    with pytest.raises(InvalidArgumentError, match="policy name"):
        nexus.policies.delete(SUPERUSER, name)


@pytest.mark.parametrize(
    ("sql", "parameters", "damaged"),
    [
        pytest.param("INSERT INTO control VALUES ('policy', 'evil', ?, zeroblob(32))", (EVIL,), "evil", id="added"),
        pytest.param("INSERT INTO control VALUES ('policy', 'No Name', ?, zeroblob(32))", (EVIL,), "No Name", id="odd"),
        pytest.param("UPDATE control SET body = ? WHERE name = 'one'", (EVIL,), "one", id="edited"),
        pytest.param("DELETE FROM control WHERE name = 'one'", (), "one", id="removed"),
    ],
)
@pytest.mark.parametrize("remedy", ["apply", "delete"])
def test_a_policy_changed_in_the_database_is_named_and_healed_by_a_superuser(
    nexus: NexusCore, tmp_path: Path, sql: str, parameters: tuple[object, ...], damaged: str, remedy: str
) -> None:
    """No workload is authorised until the row is healed, and a change of another policy does not bless it."""
    tamper(tmp_path, sql, *parameters)
    nexus.policies.apply(SUPERUSER, [policy("other")])
    assert nexus.policies.list(SUPERUSER).damaged == (damaged,)
    with pytest.raises(CorruptRowError, match=f"policy {damaged} was changed outside"):
        nexus.policies.get(SUPERUSER, damaged)
    assert nexus.policies.explain(SUPERUSER, APP.spiffe_id, READ, "team/x").policies == ()
    with pytest.raises(DeniedError):
        nexus.vault.get(APP, "team/x", 0)
    if remedy == "apply" and damaged != "No Name":
        assert nexus.policies.apply(SUPERUSER, [policy(damaged)]).unchanged == ()
        assert damaged in names(nexus)
    else:
        nexus.policies.delete(SUPERUSER, damaged)
        assert damaged not in names(nexus)
    assert nexus.policies.list(SUPERUSER).damaged == ()
    with pytest.raises(NotFoundError):
        nexus.vault.get(APP, "team/x", 0)


def test_what_is_committed_is_in_force_even_when_the_store_cannot_be_read_any_more(
    make_nexus: MakeNexus, store: Store
) -> None:
    """What was revoked must not go on allowing."""
    failing = FailingStore(store)
    nexus = make_nexus(policy("one"), store=failing)
    failing.cannot_read = True
    nexus.policies.delete(SUPERUSER, "one")
    assert decide(nexus) is None


@pytest.mark.parametrize("flag", ["cannot_audit", "cannot_commit"])
def test_what_is_not_committed_is_not_in_force(make_nexus: MakeNexus, store: Store, flag: str) -> None:
    """A policy change that was not committed is audited as a failure, like a read."""
    failing = FailingStore(store)
    nexus = make_nexus(policy("one"), store=failing)
    setattr(failing, flag, True)
    with pytest.raises(StoreUnavailableError):
        nexus.policies.delete(SUPERUSER, "one")
    with pytest.raises(StoreUnavailableError):
        nexus.policies.apply(SUPERUSER, [policy("two")])
    assert names(nexus) == ["one", "superusers"]
    assert nexus.list_change_entries() == []
    assert [entry.outcome for entry in nexus.list_entries()][:2] == ["STORE_UNAVAILABLE"] * 2


def test_a_list_comes_in_pages(nexus: NexusCore) -> None:
    """Each begins after the last name of the one before, and the last one says that there are no more."""
    nexus.policies.apply(SUPERUSER, [policy(f"p{number:03}") for number in range(MAX_APPLIED)])
    first = nexus.policies.list(SUPERUSER)
    assert (len(first.policies), first.following) == (MAX_PAGE, "p098")
    second = nexus.policies.list(SUPERUSER, after=first.following)
    assert ([one.name for one in second.policies], second.following) == (["p099", "superusers", "two"], "")
    assert [one.name for one in nexus.policies.list(SUPERUSER, limit=2).policies] == ["one", "p000"]
    for wrong in ({"limit": MAX_PAGE + 1}, {"after": "not/a name"}):
        with pytest.raises(InvalidArgumentError, match="page_"):
            nexus.policies.list(SUPERUSER, **wrong)


def test_a_page_is_no_larger_than_a_message(nexus: NexusCore) -> None:
    """A page of policies of the largest kind ends early, and all of them come."""
    paths = tuple(f"{number:02}/" + "/".join(["x" * 128] * 3) for number in range(64))
    nexus.policies.apply(SUPERUSER, [policy(f"large{number:02}", paths=paths) for number in range(50)])
    pages, after = list[PolicyPage](), ""
    while not pages or after:
        pages.append(nexus.policies.list(SUPERUSER, after=after))
        after = pages[-1].following
    assert len(pages) > 1
    assert all(sum(len(encode_policy(one)) for one in page.policies) <= MAX_PAGE_SIZE for page in pages)
    assert len([one for page in pages for one in page.policies]) == 50 + 3
