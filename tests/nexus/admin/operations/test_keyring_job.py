"""The keyring job: every row comes to the current KEK, and the older one goes."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from common.errors import OperationRefusedError, RecoveringError, SealedError, StoreLostError
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.progress import JobView
from nexus.admin.operations.reshare_plan import ResharePlan
from nexus.keys.records import GenerationState
from nexus.lifecycle.states import State
from nexus.store.protocol import Reader, Store
from nexus.vault.expected import Expected
from tests.kit.waiting import wait_until
from tests.nexus.admin.operations.conftest import MakeRekeyed
from tests.nexus.admin.operations.rekeyed import NEW, OLD, Rekeyed, find_in_files, make_key, make_rekeyed, name_path
from tests.nexus.cluster import FoundCluster
from tests.nexus.core import APP, OPERATOR, SUPERUSER
from tests.nexus.failing_store import FailingStore
from tests.nexus.store.contract import threads


def list_actions(rekeyed: Rekeyed) -> list[str]:
    """Return what the job left in the audit."""
    return [entry.action for _, entry in rekeyed.core.list_change_entries() if entry.action.startswith("root.kek")]


def test_every_row_comes_to_the_current_kek_and_the_older_one_goes(rekeyed: Rekeyed) -> None:
    """Verified, retired, forgotten; its generation is retired, the audit says so, and nothing is left to show."""
    before = rekeyed.rows
    assert rekeyed.keks_of_rows == {OLD: 12}
    rekeyed.work_to_rest()
    assert rekeyed.keks_of_rows == {NEW: 12}
    rekeyed.check_values()
    assert {path: row.dek_id for path, row in rekeyed.rows.items()} == {p: row.dek_id for p, row in before.items()}
    assert (list(rekeyed.keks), rekeyed.keyring.list_keks()) == ([str(NEW)], [NEW])
    states = {number: one.state for number, one in rekeyed.facts.generations.items()}
    assert states == {1: GenerationState.RETIRED, 2: GenerationState.ACTIVE}
    assert list_actions(rekeyed) == ["root.kek-verified", "root.kek-retired"]
    assert rekeyed.job.view() is None
    assert rekeyed.store.scrubs == 1


def test_rows_take_no_revision(rekeyed: Rekeyed) -> None:
    """Only what changes the keyring does: verified and retired."""
    before = rekeyed.cluster.load()[0]
    rekeyed.work_to_rest()
    after = rekeyed.cluster.load()[0]
    assert (after.revision, after.control_revision) == (before.revision + 2, before.control_revision + 2)


def test_rows_under_a_tainted_kek_get_new_deks_and_new_ciphertext(make: MakeRekeyed) -> None:
    """Whoever had the old DEKs opens nothing with them any more; every value is what it was."""
    rekeyed = make(is_tainted=True)
    before = load_values(rekeyed)
    rekeyed.work_to_rest()
    after = load_values(rekeyed)
    assert before.keys() == after.keys()
    for path, (dek_id, value) in before.items():
        assert after[path][0] != dek_id
        assert after[path][1] != value
    assert rekeyed.keks_of_rows == {NEW: 12}
    assert list(rekeyed.keks) == [str(NEW)]
    rekeyed.check_values()


def load_values(rekeyed: Rekeyed) -> dict[str, tuple[bytes, bytes]]:
    """Load DEK id and ciphertext of each version."""
    with rekeyed.cluster.store.read() as reader:
        rows = reader.scan_versions(limit=1000)
        return {row.path: (row.dek_id, reader.load_value(row) or b"") for row in rows}


def test_what_is_gone_is_in_no_file(rekeyed: Rekeyed) -> None:
    """Neither the wraps of before, nor the wrap of the KEK, nor the KEK itself, which never was."""
    gone = [row.wrapped_dek for row in rekeyed.rows.values()]
    kek = bytes(rekeyed.keyring.find_kek(OLD))
    gone.append(rekeyed.keks[str(OLD)].wrap)
    folder = rekeyed.core.folder
    assert len(find_in_files(folder, *gone)) >= len(gone)  # else the search proves nothing
    view = rekeyed.keyring._keks[OLD].view
    rekeyed.work_to_rest()
    assert find_in_files(folder, *gone, kek) == []
    kept = [row.wrapped_dek for row in rekeyed.rows.values()]
    assert len(find_in_files(folder, *kept)) >= len(kept)
    with pytest.raises(ValueError, match="released"):
        bytes(view)


def test_a_scrub_that_does_not_succeed_is_tried_again(rekeyed: Rekeyed) -> None:
    """Somebody reads, so the log cannot be emptied yet."""
    rekeyed.work_until(lambda: list(rekeyed.keks) == [str(NEW)])
    rekeyed.job._kek_end.scrub = lambda: False  # type: ignore[method-assign]
    assert rekeyed.step() == 0.0  # forgets the KEK
    assert (rekeyed.step(), rekeyed.store.scrubs) == (1.0, 0)
    del rekeyed.job._kek_end.scrub
    assert (rekeyed.step(), rekeyed.store.scrubs) == (0.0, 1)


def test_a_kek_is_kept_in_memory_while_somebody_who_began_before_may_use_it(rekeyed: Rekeyed) -> None:
    """A read that loaded its row before that was wrapped anew still opens it."""
    rekeyed.work_until(lambda: list(rekeyed.keks) == [str(NEW)])
    with rekeyed.core.lifecycle.borrow():
        thread = threading.Thread(target=rekeyed.step)
        thread.start()
        wait_until(lambda: rekeyed.core.lifecycle._era > 0)
        assert rekeyed.keyring.list_keks() == [OLD, NEW]
    wait_until(lambda: rekeyed.keyring.list_keks() == [NEW])
    thread.join()


def test_calls_go_on_while_the_job_runs(make: MakeRekeyed) -> None:
    """Puts and gets of several callers beside it: all succeed, and every row is under the current KEK at the end."""
    rekeyed = make(rows=400)
    rekeyed.job.start()

    def work(name: int) -> None:
        for number in range(1, 31):
            path = f"team/{name}"
            made = rekeyed.core.vault.put(APP, path, {"value": b"%d" % number}, Expected(), os.urandom(16))
            assert made.versions == (number,)
            assert rekeyed.core.vault.get(APP, path, 0).fields == {"value": b"%d" % number}
            assert rekeyed.get(13 * number) == b"value %d" % (13 * number)

    with threads(work, 3):
        pass
    wait_until(lambda: list(rekeyed.keks) == [str(NEW)] and rekeyed.job.view() is None)
    with rekeyed.cluster.store.read() as reader:
        assert reader.count_by_kek() == {NEW: 400 + 90}
    rekeyed.check_values()
    assert rekeyed.quarantine == []


def test_keys_are_replaced_while_the_job_runs(make: MakeRekeyed) -> None:
    """Beside puts and gets: each row comes to the newest KEK, every value opens, and no other KEK is left."""
    rekeyed = make(rows=400)
    job = rekeyed.core.job  # by a clock whose waits pass
    job.start()

    def work(name: int) -> None:
        for number in range(1, 16):
            if name == 0:
                rekeyed.flip_kek()
                job.wake()
            rekeyed.put(1000 + name, b"%d" % number)
            assert rekeyed.get(1000 + name) == b"%d" % number
            assert rekeyed.get(25 * number) == b"value %d" % (25 * number)

    with threads(work, 3):
        pass
    newest = str(NEW + 15)
    wait_until(lambda: list(rekeyed.keks) == [newest] and job.view() is None)
    wait_until(lambda: rekeyed.keyring.list_keks() == [int(newest)])
    assert rekeyed.keks_of_rows == {int(newest): 403}
    assert rekeyed.quarantine == []
    rekeyed.check_values()
    assert rekeyed.core.failures == []


def test_no_kek_goes_while_a_row_is_under_it(rekeyed: Rekeyed) -> None:
    """Counted in the change that would delete it, whatever was read before."""
    rekeyed.work_until(lambda: bool(rekeyed.keks[str(OLD)].verified_at))
    rekeyed.store.at_write = lambda: rekeyed.edit_version(3, kek_id=OLD)
    with pytest.raises(OperationRefusedError, match="1 rows are under KEK"):
        rekeyed.step()
    assert rekeyed.store.at_write is None
    assert rekeyed.keyring.list_keks() == [OLD, NEW]


def test_a_row_that_no_index_shows_is_found_before_its_kek_is_verified(rekeyed: Rekeyed) -> None:
    """The pass that counts reads the table itself."""
    rekeyed.work_until(lambda: rekeyed.keks_of_rows == {NEW: 12})

    def hide() -> None:
        rekeyed.edit_version(3, kek_id=OLD, wrapped_dek=old)

    old = os.urandom(98)
    rekeyed.store.at_read = lambda: setattr(rekeyed.store, "at_read", hide)  # after the look, before the first page
    rekeyed.step()
    assert not rekeyed.keks[str(OLD)].verified_at
    assert [row.key for row in rekeyed.quarantine] == [make_key(3)]


def test_the_job_waits_for_a_backup_that_nobody_waived(make: MakeRekeyed) -> None:
    """The KEK stays, and the view says why."""
    rekeyed = make(waives_backup=False)
    rekeyed.work_to_rest()
    assert sorted(rekeyed.keks) == [str(OLD), str(NEW)]
    view = rekeyed.job.view()
    assert view is not None
    assert (view.waits_for, view.rows_left, view.quarantine) == ("backup", 0, 0)


def test_rows_are_counted_anew_after_each_flip(make: MakeRekeyed) -> None:
    """Also while an older KEK still waits for something."""
    rekeyed = make(waives_backup=False)
    rekeyed.work_to_rest()
    rekeyed.flip_kek()
    rekeyed.step()
    view = rekeyed.job.view()
    assert view is not None
    assert (view.rows_total, view.rows_left) == (12, 12)


def test_keks_wait_for_an_operation_and_rows_do_not(rekeyed: Rekeyed) -> None:
    """The keyring is frozen meanwhile; when the operation has ended, the KEK goes."""
    core = rekeyed.core
    core.pool.start()
    wait_until(lambda: core.pool.count_holders() == 3)
    core.operations.reshare(OPERATOR, bytes(16), ResharePlan(), "", dry_run=False)
    rekeyed.work_to_rest()
    assert rekeyed.keks_of_rows == {NEW: 12}
    view = rekeyed.job.view()
    assert view is not None
    assert view.waits_for == "operation"
    assert not rekeyed.keks[str(OLD)].verified_at
    core.operations.abort(OPERATOR, bytes(16), "")
    rekeyed.work_until(lambda: list(rekeyed.keks) == [str(NEW)])


def test_a_store_that_was_put_back_is_not_written(rekeyed: Rekeyed) -> None:
    """Between the read and the change: no wrap of it is replaced, and ready ends."""
    before = rekeyed.rows
    rekeyed.store.at_write = lambda: rekeyed.edit("UPDATE meta SET revision = revision - 1")
    with pytest.raises(StoreLostError, match="was put back"):
        rekeyed.step()
    assert rekeyed.rows == before
    with pytest.raises(StoreLostError):
        rekeyed.step()
    rekeyed.job.start()
    wait_until(lambda: "was put back" in rekeyed.core.lifecycle.store_fault)


def test_a_row_that_somebody_else_was_first_at_is_as_they_left_it(rekeyed: Rekeyed) -> None:
    """Deleted and made anew, overwritten, or wrapped anew, between the read of the job and its change."""
    rewrapped = rekeyed.rows[name_path(2)]

    def disturb() -> None:
        rekeyed.delete(0)
        rekeyed.put(0, b"made anew")
        rekeyed.put(1, b"second")
        rekeyed.edit_version(2, kek_id=NEW, wrapped_dek=b"somebody else's")

    rekeyed.store.at_write = disturb
    rekeyed.step()
    assert rekeyed.store.at_write is None
    assert rekeyed.rows[name_path(2)] == rewrapped._replace(kek_id=NEW, wrapped_dek=b"somebody else's")
    assert (rekeyed.get(0), rekeyed.get(1)) == (b"made anew", b"second")
    assert rekeyed.keks_of_rows == {NEW: 12}


@pytest.mark.parametrize("opens", [True, False])
def test_nothing_is_made_with_keys_that_were_withdrawn(make: MakeRekeyed, opens: bool) -> None:
    """A seal between the cryptography and the change: what a wiped key made, or refused, is not committed."""
    rekeyed = make(rows=1)
    if not opens:
        rekeyed.edit_version(0, wrapped_dek=bytes(98))
    before = rekeyed.rows
    rekeyed.store.at_write = lambda: rekeyed.core.lifecycle.withdraw(State.SEALED, seconds=5)
    with pytest.raises(RecoveringError, match="withdrawn meanwhile"):
        rekeyed.step()
    assert (rekeyed.rows, rekeyed.quarantine) == (before, [])
    assert rekeyed.job.view() is not None
    with pytest.raises(SealedError):
        rekeyed.step()
    rekeyed.job.start()
    wait_until(lambda: rekeyed.job.view() is None)


def test_a_paused_job_does_nothing_and_says_why(rekeyed: Rekeyed) -> None:
    """It knows what is to do, and goes on when it may."""
    calls = rekeyed.core.rotation_calls
    calls.pause(SUPERUSER, "maintenance")
    assert rekeyed.step() == 1.0
    assert rekeyed.keks_of_rows == {OLD: 12}
    assert rekeyed.job.view() == JobView(12, 12, 0.0, None, 0, "", f"maintenance ({SUPERUSER.spiffe_id})")
    calls.resume(SUPERUSER)
    rekeyed.work_to_rest()
    assert rekeyed.keks_of_rows == {NEW: 12}


def test_a_job_with_a_limit_rests_for_the_rest_of_its_time(rekeyed: Rekeyed) -> None:
    """Four rows a second: four, then a second."""
    rekeyed.rate = 4
    for done in (4, 8, 12):
        assert rekeyed.step() == 1.0
        assert rekeyed.keks_of_rows.get(NEW) == done
        rekeyed.clock.advance(1)
    assert rekeyed.step() == 0.0


def test_it_tells_how_far_it_is(rekeyed: Rekeyed) -> None:
    """Rows left, the speed, rests included, and the time that is left at it."""
    assert rekeyed.job.view() is None
    rekeyed.rate = 4
    rekeyed.step()
    assert rekeyed.job.view() == JobView(12, 12, 0.0, None, 0, "", "")
    rekeyed.clock.advance(1)
    rekeyed.step()
    rekeyed.clock.advance(1)
    rekeyed.step()
    view = rekeyed.job.view()
    assert view is not None
    assert (view.rows_total, view.rows_left) == (12, 4)
    assert view.rows_per_second == pytest.approx(8)  # two batches in the second between them
    assert view.seconds_left == pytest.approx(0.5)


def test_at_rest_it_reads_nothing_but_the_position(rekeyed: Rekeyed) -> None:
    """Until somebody asks, or a control row changes."""
    rekeyed.work_to_rest()
    rekeyed.edit_version(3, kek_id=1)
    assert [rekeyed.step() for _ in range(3)] == [1.0] * 3
    assert rekeyed.quarantine == []
    rekeyed.job.wake()
    rekeyed.work_to_rest()
    assert [row.key for row in rekeyed.quarantine] == [make_key(3)]


def test_what_fails_is_said_once_and_tried_again(rekeyed: Rekeyed, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that is full for a while stops nothing for good."""
    rekeyed.store.cannot_commit = True
    rekeyed.job.start()
    for _ in range(3):
        assert rekeyed.clock.wait_for_waiters()
        before = rekeyed.store.writes
        rekeyed.clock.advance(1)
        wait_until(partial(has_written, rekeyed, before))
    assert capsys.readouterr().out.count("keyring job cannot go on yet") == 1
    assert rekeyed.keks_of_rows == {OLD: 12}
    rekeyed.store.cannot_commit = False

    def has_ended() -> bool:
        rekeyed.clock.advance(1)
        return rekeyed.job.view() is None and rekeyed.keks_of_rows == {NEW: 12}

    wait_until(has_ended)


def has_written(rekeyed: Rekeyed, before: int) -> bool:
    """Whether a change was tried since *before*."""
    return rekeyed.store.writes > before


def test_it_rests_as_long_as_a_batch_took_while_calls_are_in_flight(rekeyed: Rekeyed) -> None:
    """Nobody else borrows the keys: it goes straight on."""
    rekeyed.rate = 10**6
    for is_called, rest in [(True, 0.25), (False, 0.0)]:
        rekeyed.store.at_write = lambda: rekeyed.clock.advance(0.25)
        if is_called:
            with rekeyed.core.lifecycle.borrow():
                assert rekeyed.step() == rest
        else:
            rekeyed.edit_version(3, kek_id=OLD)
            assert rekeyed.step() == rest


class LateReads(FailingStore):
    """Does something between the position and the rest of a read, which sees nothing of it."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.after_position: Callable[[], object] | None = None

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with super().read() as reader:
            act, self.after_position = self.after_position, None
            if act is not None:
                reader.load_position()
                act()
            yield reader


def test_what_somebody_asks_for_while_it_looks_is_not_missed(
    store: Store, tmp_path: Path, memory: ProtectedMemory, found: FoundCluster
) -> None:
    """A version is taken out of quarantine after the read began, and the job is told."""
    late = LateReads(store)
    rekeyed = make_rekeyed(found, tmp_path, late, memory)
    with closing(rekeyed.core):
        ask_while_it_looks(rekeyed, late)


def ask_while_it_looks(rekeyed: Rekeyed, late: LateReads) -> None:
    """Retry a version that was mended."""
    wrap = rekeyed.rows[name_path(3)].wrapped_dek
    rekeyed.edit_version(3, wrapped_dek=bytes(98))
    rekeyed.work_to_rest()
    rekeyed.edit_version(3, wrapped_dek=wrap)

    def ask() -> None:
        rekeyed.core.quarantine.retry(OPERATOR, make_key(3))
        rekeyed.job.wake()

    rekeyed.clock.advance(10)
    late.after_position = ask
    rekeyed.work_to_rest()
    assert late.after_position is None
    rekeyed.work_to_rest()
    assert list(rekeyed.keks) == [str(NEW)]


def test_a_commit_of_unknown_outcome_ends_the_process(rekeyed: Rekeyed) -> None:
    """Nobody knows what the store holds."""
    rekeyed.store.forgets_outcome = True
    rekeyed.job.start()
    wait_until(lambda: bool(rekeyed.core.failures))
    assert rekeyed.core.failures[0].startswith("keyring job: ")
