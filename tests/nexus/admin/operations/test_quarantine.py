"""Versions that do not open: they hold up nothing but the end of their KEK, until a person decides."""

import pytest

from common.errors import (
    CorruptRowError,
    DecryptionError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    OperationRefusedError,
    StoreLostError,
)
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.store.rewrapping import VersionKey
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.conftest import MakeRekeyed
from tests.nexus.admin.operations.rekeyed import NEW, OLD, Rekeyed, make_key, name_path
from tests.nexus.core import APP, AUDITOR, OPERATOR, SUPERUSER


def list_keys(rekeyed: Rekeyed) -> list[VersionKey]:
    """List the quarantine as an auditor."""
    return [row.key for row in rekeyed.core.quarantine.list(AUDITOR, None, 0)]


def damage(rekeyed: Rekeyed, number: int = 3) -> bytes:
    """Damage a wrap, let the job work, and return what the wrap was."""
    wrap = rekeyed.rows[name_path(number)].wrapped_dek
    rekeyed.edit_version(number, wrapped_dek=wrap[:-1] + bytes([wrap[-1] ^ 1]))
    rekeyed.work_to_rest()
    return wrap


def abandon(rekeyed: Rekeyed, number: int = 3) -> None:
    """Give a version up, and let the job work."""
    rekeyed.core.quarantine.abandon(SUPERUSER, make_key(number), "lost for good")
    rekeyed.job.wake()
    rekeyed.work_to_rest()


def retry(rekeyed: Rekeyed, number: int = 3) -> None:
    """Try a version again."""
    rekeyed.core.quarantine.retry(OPERATOR, make_key(number))
    rekeyed.job.wake()
    rekeyed.work_to_rest()


@pytest.mark.parametrize("is_tainted", [False, True])
def test_rows_that_do_not_open_are_set_aside_and_the_others_go_on(make: MakeRekeyed, is_tainted: bool) -> None:
    """Whatever is wrong with them; each says why, and its KEK waits."""
    rekeyed = make(is_tainted=is_tainted)
    wraps = {number: rekeyed.rows[name_path(number)].wrapped_dek for number in range(12)}
    rekeyed.edit_version(0, wrapped_dek=b"short")
    rekeyed.edit_version(1, wrapped_dek=wraps[2])
    rekeyed.edit_version(3, incarnation=b"j" * 16)
    rekeyed.edit_version(4, kek_id=1)
    rekeyed.edit_version(5, kek_id=-7)
    rekeyed.edit_version(6, kek_id=99)
    rekeyed.edit_version(7, version=-1)
    rekeyed.edit_version(8, dek_id=bytes(16))
    rekeyed.edit("UPDATE versions SET path = CAST(x'ff2f61' AS TEXT) WHERE path = ?", name_path(9))
    rekeyed.edit_version(11, wrapped_dek=wraps[11][:20] + bytes(30) + wraps[11][50:])
    rekeyed.work_to_rest()
    found = {row.key.path: row.reason for row in rekeyed.quarantine}
    assert found == {
        name_path(0): "wrap is 5 bytes of format 7368, want 98",
        name_path(1): "wrap does not open at this place",
        name_path(3): "wrap does not open at this place",
        name_path(4): "row names KEK 1, which is not in the keyring",
        name_path(5): "row names KEK -7, which is not in the keyring",
        name_path(6): "row names KEK 99, which is not in the keyring",
        name_path(7): "row has a version that nothing comes to by counting",
        name_path(8): "wrap does not open at this place",
        name_path(11): "wrap is under another key",
        "\udcff/a": "row has a path that does not decode",
    }
    assert rekeyed.keks_of_rows == {NEW: 2, OLD: 7, 1: 1, -7: 1, 99: 1}
    assert [rekeyed.get(number) for number in (2, 10)] == [b"value 2", b"value 10"]
    assert rekeyed.keks[str(OLD)].verified_at
    view = rekeyed.job.view()
    assert view is not None
    assert (view.rows_left, view.quarantine, view.waits_for) == (0, 10, "quarantine")


@pytest.mark.parametrize("named", [1, NEW, NEW + 1, -7])
def test_a_kek_stays_while_a_row_in_quarantine_may_be_under_it(rekeyed: Rekeyed, named: int) -> None:
    """The number of its KEK is what was damaged: nothing says any more which one it needs."""
    rekeyed.edit_version(3, kek_id=named)
    rekeyed.work_to_rest()
    assert list_keys(rekeyed) == [make_key(3)]
    assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]
    retry(rekeyed)  # although nothing was mended
    assert (list_keys(rekeyed), sorted(rekeyed.keks)) == ([make_key(3)], [str(OLD), str(NEW)])
    rekeyed.edit_version(3, kek_id=OLD)
    retry(rekeyed)
    assert list(rekeyed.keks) == [str(NEW)]
    rekeyed.check_values()


@pytest.mark.parametrize("named", [1, NEW, NEW + 1])
def test_a_row_whose_kek_is_not_known_can_be_given_up(rekeyed: Rekeyed, named: int) -> None:
    rekeyed.edit_version(3, kek_id=named)
    rekeyed.work_to_rest()
    abandon(rekeyed)
    assert list(rekeyed.keks) == [str(NEW)]


def test_a_value_that_does_not_open_is_set_aside(make: MakeRekeyed) -> None:
    """Under a tainted KEK the values are opened as well."""
    rekeyed = make(is_tainted=True)
    rekeyed.edit("UPDATE versions SET value = CAST(value || 'x' AS BLOB) WHERE path = ?", name_path(3))
    rekeyed.edit_version(4, value=b"\x01")
    rekeyed.work_to_rest()
    assert [(row.key.path, row.reason) for row in rekeyed.quarantine] == [
        (name_path(3), "value does not open at this place"),
        (name_path(4), "value is 1 bytes of format 01"),
    ]
    assert rekeyed.keks_of_rows == {NEW: 10, OLD: 2}


def test_a_kek_goes_when_what_is_under_it_was_given_up(rekeyed: Rekeyed) -> None:
    """The keyring counts it; afterwards nothing opens the version any more, and the job has nothing to show."""
    damage(rekeyed)
    assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]
    abandon(rekeyed)
    assert list(rekeyed.keks) == [str(NEW)]
    assert rekeyed.job.view() is None
    (row,) = rekeyed.quarantine
    assert (row.key, row.abandoned_by) == (make_key(3), SUPERUSER.spiffe_id)
    with pytest.raises(CorruptRowError, match="not in the keyring"):
        rekeyed.get(3)
    actions = {entry.action: entry for _, entry in rekeyed.core.list_change_entries()}
    entry = actions["quarantine.abandon"]
    assert (entry.actor, entry.path, entry.version) == (SUPERUSER.spiffe_id, name_path(3), 1)
    assert entry.detail.endswith(": lost for good")


def test_what_is_given_up_is_counted_in_the_change_that_marks_it(make: MakeRekeyed) -> None:
    """A second time counts nothing; what is tried again is counted no more."""
    rekeyed = make(waives_backup=False)
    rekeyed.edit_version(4, wrapped_dek=bytes(98))
    damage(rekeyed)
    for number, count, is_new in [(3, 1, 1), (3, 1, 0), (4, 2, 1)]:
        before = rekeyed.cluster.load()[0]
        rekeyed.core.quarantine.abandon(SUPERUSER, make_key(number), "lost")
        after = rekeyed.cluster.load()[0]
        assert rekeyed.keks[str(OLD)].abandoned == count
        assert after.revision == before.revision + 1
        assert after.control_revision == before.control_revision + is_new
    rekeyed.core.quarantine.retry(OPERATOR, make_key(3))
    assert rekeyed.keks[str(OLD)].abandoned == 1
    rekeyed.work_to_rest()
    assert [bool(row.abandoned_by) for row in rekeyed.quarantine] == [False, True]


def test_a_version_that_was_mended_is_tried_again(rekeyed: Rekeyed) -> None:
    """It opens now, and its KEK goes."""
    wrap = damage(rekeyed)
    with pytest.raises(DecryptionError):
        rekeyed.get(3)
    rekeyed.edit_version(3, wrapped_dek=wrap)
    rekeyed.work_to_rest()
    assert rekeyed.keks_of_rows == {NEW: 11, OLD: 1}  # nobody has said so yet
    retry(rekeyed)
    assert rekeyed.quarantine == []
    assert list(rekeyed.keks) == [str(NEW)]
    rekeyed.check_values()


def test_a_version_that_is_tried_again_in_vain_is_set_aside_again(rekeyed: Rekeyed) -> None:
    """As often as somebody likes."""
    damage(rekeyed)
    for _ in range(2):
        retry(rekeyed)
        assert list_keys(rekeyed) == [make_key(3)]
        assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]


def test_what_somebody_marks_in_the_store_lets_no_kek_go(rekeyed: Rekeyed) -> None:
    """The keyring does not count it, whatever else is tried again; tried again itself, it is in order."""
    other = rekeyed.rows[name_path(4)].wrapped_dek
    rekeyed.edit_version(4, wrapped_dek=bytes(98))
    wrap = damage(rekeyed)
    rekeyed.edit("UPDATE quarantine SET abandoned_by = 'mallory'")
    rekeyed.job.wake()
    rekeyed.work_to_rest()
    assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]
    view = rekeyed.job.view()
    assert view is not None
    assert view.waits_for == "quarantine"
    rekeyed.edit_version(4, wrapped_dek=other)
    retry(rekeyed, 4)
    assert rekeyed.keks_of_rows == {NEW: 11, OLD: 1}
    assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]
    rekeyed.edit_version(3, wrapped_dek=wrap)
    retry(rekeyed)
    assert list(rekeyed.keks) == [str(NEW)]
    rekeyed.check_values()


def test_what_was_given_up_may_be_deleted_with_its_secret(make: MakeRekeyed) -> None:
    """Then fewer are counted, and the KEK is not waited for in vain."""
    rekeyed = make(waives_backup=False)
    damage(rekeyed)
    abandon(rekeyed)
    rekeyed.delete(3)
    rekeyed.put(3, b"made anew")
    assert rekeyed.quarantine == []
    rekeyed.job.wake()
    rekeyed.work_to_rest()
    assert rekeyed.keks[str(OLD)].abandoned == 0
    view = rekeyed.job.view()
    assert view is not None
    assert view.waits_for == "backup"
    assert [entry.action for _, entry in rekeyed.core.list_change_entries()][-1] == "root.kek-recount"


def test_a_secret_that_is_made_anew_takes_its_old_version_out_of_quarantine(rekeyed: Rekeyed) -> None:
    """Nobody has to decide about what does not exist."""
    damage(rekeyed)
    assert rekeyed.job.list_alarms() == ["1 versions of secrets do not open: pilot root quarantine list"]
    rekeyed.delete(3)
    rekeyed.put(3, b"made anew")
    rekeyed.clock.advance(10)
    rekeyed.work_to_rest()
    assert list(rekeyed.keks) == [str(NEW)]
    assert (rekeyed.job.view(), rekeyed.job.list_alarms()) == (None, [])


def test_nothing_is_given_up_while_an_operation_is_in_progress(rekeyed: Rekeyed) -> None:
    """The keyring is frozen; the row is not marked either."""
    damage(rekeyed)
    core = rekeyed.core
    core.pool.start()
    wait_until(lambda: core.pool.count_holders() == 3)
    core.operations.reshare(OPERATOR, bytes(16), ResharePlan(), "", dry_run=False)
    with pytest.raises(OperationRefusedError, match="the keyring is frozen"):
        core.quarantine.abandon(SUPERUSER, make_key(3), "lost")
    assert [row.abandoned_by for row in rekeyed.quarantine] == [""]


@pytest.mark.parametrize("call", ["retry", "abandon"])
def test_nothing_is_decided_in_a_store_that_was_put_back(rekeyed: Rekeyed, call: str) -> None:
    """Not even where no control row changes."""
    damage(rekeyed)
    quarantine = rekeyed.core.quarantine
    rekeyed.edit("UPDATE meta SET revision = revision - 1")
    act = {
        "retry": lambda: quarantine.retry(OPERATOR, make_key(3)),
        "abandon": lambda: quarantine.abandon(SUPERUSER, make_key(3), "lost"),
    }
    with pytest.raises(StoreLostError, match="was put back"):
        act[call]()
    assert [(row.key, row.abandoned_by) for row in rekeyed.quarantine] == [(make_key(3), "")]
    assert "was put back" in rekeyed.core.lifecycle.store_fault


def test_rules_of_the_calls(rekeyed: Rekeyed) -> None:
    """Who may, what has to be there, and what is left when it is refused."""
    damage(rekeyed)
    quarantine = rekeyed.core.quarantine
    with pytest.raises(DeniedError):
        quarantine.abandon(OPERATOR, make_key(3), "lost")
    with pytest.raises(DeniedError):
        quarantine.retry(AUDITOR, make_key(3))
    with pytest.raises(DeniedError):
        quarantine.list(APP, None, 0)
    with pytest.raises(InvalidArgumentError, match="reason: got none"):
        quarantine.abandon(SUPERUSER, make_key(3), "")
    with pytest.raises(InvalidArgumentError, match="page_size"):
        quarantine.list(OPERATOR, None, 1001)
    for key in (make_key(4), make_key(3)._replace(incarnation=b"j" * 16), make_key(3)._replace(version=2)):
        with pytest.raises(NotFoundError):
            quarantine.abandon(SUPERUSER, key, "lost")
        with pytest.raises(NotFoundError):
            quarantine.retry(OPERATOR, key)
    assert [row.abandoned_by for row in rekeyed.quarantine] == [""]
    assert quarantine.list(OPERATOR, make_key(3), 10) == []
