"""What a holder of a root key and of a copy of the store could read, and which of it is current yet."""

import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from common.clock import to_micros
from common.errors import (
    CallerGoneError,
    DeniedError,
    InvalidArgumentError,
    NotFoundError,
    SealedError,
    StoreLostError,
)
from nexus.access.gate import Caller
from nexus.admin.operations.impact import ExposedSecret, Impact
from nexus.keys.envelope import Place, SealedValue, open_value
from nexus.keys.operation.record import Depth
from nexus.keys.records import GenerationState
from nexus.store.sqlite.store import SqliteStore
from nexus.vault.expected import Expected
from tests.nexus.admin.operations.reshared import Resharing
from tests.nexus.cluster import tamper
from tests.nexus.core import APP, AUDITOR, KEEPER, NEXUS, OPERATOR, RECOVER, SUPERUSER

ROTATE = pytest.mark.parametrize("resharing", [Depth.ROTATE], indirect=True)


def put(resharing: Resharing, path: str) -> None:
    """Write the next version of a secret."""
    resharing.core.vault.put(SUPERUSER, path, {"value": b"v"}, Expected(), os.urandom(16))


def delete(resharing: Resharing, path: str, *versions: int) -> None:
    """Delete versions of a secret; none: all."""
    resharing.core.vault.delete(SUPERUSER, path, versions, Expected(), os.urandom(16))


def rotate(resharing: Resharing) -> None:
    """Let another root key become current, and the rows follow."""
    resharing.begin(operation_id=os.urandom(16))
    resharing.drive_to_rest()


def list_secrets(resharing: Resharing, generation: int) -> list[ExposedSecret]:
    """List what fits on one page."""
    page = resharing.core.impact.list_page(AUDITOR, generation)
    assert page.next == ""
    return page.secrets


def outline(resharing: Resharing, generation: int) -> list[tuple[str, int, int, bool]]:
    """List everything without times."""
    secrets = list_secrets(resharing, generation)
    return [(one.path, one.versions, one.newest_version, one.is_current) for one in secrets]


@ROTATE
def test_versions_of_before_the_flip_could_be_read(resharing: Resharing) -> None:
    """A secret that was written again since is not current any more; one that is new since is not there."""
    for path in ("team/a", "team/b", "team/b", "team/c"):
        put(resharing, path)
    delete(resharing, "team/c")
    rotate(resharing)
    put(resharing, "team/a")
    put(resharing, "team/d")
    now = to_micros(resharing.core.clock.now())
    page = resharing.core.impact.list_page(AUDITOR, 1)
    assert page.secrets == [
        ExposedSecret("team/a", 1, 1, now, is_current=False),
        ExposedSecret("team/b", 2, 2, now, is_current=True),
        ExposedSecret("team/c", 1, 1, now, is_current=False),
    ]
    flipped = resharing.facts.generations[2]
    assert page.state is GenerationState.DECRYPT_ONLY
    assert (page.until, page.until_revision) == (flipped.activated_at, flipped.flip_revision)
    assert resharing.core.list_entries()[-1].detail == "generation 1"


@ROTATE
def test_the_current_root_key_opens_everything(resharing: Resharing) -> None:
    """There is no end of it yet, and every secret that is not deleted is current."""
    put(resharing, "team/a")
    rotate(resharing)
    put(resharing, "team/a")
    put(resharing, "team/b")
    delete(resharing, "team/b")
    page = resharing.core.impact.list_page(AUDITOR, 2)
    assert (page.state, page.until, page.until_revision) == (GenerationState.ACTIVE, 0, 0)
    assert outline(resharing, 2) == [("team/a", 2, 2, True), ("team/b", 1, 1, False)]


def list_readable(resharing: Resharing, copy: Path) -> set[tuple[str, int]]:
    """Open all that the root key of generation 1 opens in a copy of its store."""
    found = set()
    with closing(SqliteStore.open(copy)) as store:
        serving = replace(resharing.cluster, store=store).prove_without_points()
        with store.read() as reader:
            for row in reader.scan_versions(limit=1000):
                sealed = SealedValue(row.kek_id, row.dek_id, row.wrapped_dek, reader.load_value(row) or b"")
                place = Place(resharing.cluster.cluster_id, row.path, row.incarnation, row.version)
                open_value(sealed, place, serving.keyring)
                found.add((row.path, row.version))
        serving.release()
    return found


@ROTATE
def test_a_holder_reads_exactly_what_is_listed(resharing: Resharing, tmp_path: Path) -> None:
    """Tried, with the real key of before and a copy of the last moment before the flip."""
    for path in ("team/a", "team/a", "team/b", "team/c"):
        put(resharing, path)
    delete(resharing, "team/a", 2)
    resharing.begin()
    with closing(sqlite3.connect(resharing.core.folder / "nexus.db")) as source:
        source.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    resharing.drive_to_rest()
    put(resharing, "team/b")
    put(resharing, "team/d")
    readable = list_readable(resharing, tmp_path / "copy.db")
    assert len(readable) == 4
    listed = outline(resharing, 1)
    assert [(path, count, newest) for path, count, newest, _ in listed] == [
        (path, len(versions), max(versions))
        for path in ("team/a", "team/b", "team/c")
        if (versions := [version for one, version in readable if one == path])
    ]
    assert [is_current for *_, is_current in listed] == [True, False, True]


@ROTATE
def test_a_root_key_that_was_never_current_counts_until_the_next_flip(resharing: Resharing) -> None:
    """The KEK that was current when it was made was wrapped under it too, and stayed in use."""
    put(resharing, "team/a")
    resharing.begin()
    assert resharing.core.impact.list_page(AUDITOR, 2).state is GenerationState.PENDING
    resharing.core.operations.abort(OPERATOR, resharing.facts.operation.id, "")  # type: ignore[union-attr]
    put(resharing, "team/b")
    assert outline(resharing, 2) == outline(resharing, 1) == [("team/a", 1, 1, True), ("team/b", 1, 1, True)]
    rotate(resharing)
    put(resharing, "team/a")
    assert resharing.facts.generations.keys() == {1, 2, 3}
    for generation in (1, 2):
        page = resharing.core.impact.list_page(AUDITOR, generation)
        assert page.until_revision == resharing.facts.generations[3].flip_revision
        assert outline(resharing, generation) == [("team/a", 1, 1, False), ("team/b", 1, 1, True)]
    assert resharing.core.impact.list_page(AUDITOR, 2).state is GenerationState.ABORTED


@ROTATE
def test_the_flip_that_comes_first_counts(resharing: Resharing) -> None:
    """What was written after it is under a KEK that the generation before has never seen."""
    put(resharing, "team/a")
    rotate(resharing)
    put(resharing, "team/b")
    rotate(resharing)
    put(resharing, "team/c")
    assert [path for path, *_ in outline(resharing, 1)] == ["team/a"]
    assert [path for path, *_ in outline(resharing, 2)] == ["team/a", "team/b"]


@ROTATE
@pytest.mark.parametrize("days", [-400, 400])
def test_a_clock_that_was_set_changes_nothing(resharing: Resharing, days: int) -> None:
    """Revisions say what came first."""
    put(resharing, "team/a")
    rotate(resharing)
    resharing.core.clock.offset = timedelta(days=days)
    put(resharing, "team/a")
    put(resharing, "team/b")
    assert outline(resharing, 1) == [("team/a", 1, 1, False)]


@ROTATE
def test_when_the_newest_version_is_deleted_the_one_before_is_current(resharing: Resharing) -> None:
    """Also when the deleted one was written since."""
    put(resharing, "team/a")
    put(resharing, "team/b")
    rotate(resharing)
    put(resharing, "team/a")
    delete(resharing, "team/a", 2)
    assert outline(resharing, 1) == [("team/a", 1, 1, True), ("team/b", 1, 1, True)]


@ROTATE
def test_the_border_is_the_revision_of_the_flip(resharing: Resharing) -> None:
    """The change before it counts, and the one after it does not."""
    rotate(resharing)
    put(resharing, "team/a")
    flip = resharing.facts.generations[2].flip_revision
    for revision, count in ((flip - 1, 1), (flip + 1, 0)):
        tamper(resharing.core.folder, "UPDATE versions SET revision = ?", revision)
        assert len(outline(resharing, 1)) == count


@ROTATE
@pytest.mark.parametrize("revision", [-1, 10_000, 2**63 - 1])
def test_a_revision_that_the_store_has_not_come_to_is_no_excuse(resharing: Resharing, revision: int) -> None:
    """A damaged row rather counts once too often."""
    rotate(resharing)
    put(resharing, "team/a")
    assert outline(resharing, 1) == []
    tamper(resharing.core.folder, "UPDATE versions SET revision = ?", revision)
    assert outline(resharing, 1) == [("team/a", 1, 1, True)]


@ROTATE
def test_without_the_row_of_the_next_generation_everything_counts(resharing: Resharing) -> None:
    """Nothing proves when its flip was; a row that is asked for itself is only a state that is not known."""
    rotate(resharing)
    put(resharing, "team/a")
    tamper(resharing.core.folder, "UPDATE control SET body = x'7b7d' WHERE kind = 'generation' AND name = '2'")
    page = resharing.core.impact.list_page(AUDITOR, 1)
    assert (page.until_revision, outline(resharing, 1)) == (0, [("team/a", 1, 1, True)])
    assert resharing.core.impact.list_page(AUDITOR, 2).state is None


def read_pages(resharing: Resharing, rows_at_once: int) -> list[list[ExposedSecret]]:
    """List page by page what generation 1 opened."""
    impact = Impact(resharing.store, resharing.core.gate, rows_at_once=rows_at_once)
    pages, after = list[list[ExposedSecret]](), ""
    while not pages or after:
        page = impact.list_page(AUDITOR, 1, after=after)
        assert page.next == "" or page.next > after
        pages.append(page.secrets)
        after = page.next
    return pages


@ROTATE
def test_pages_together_are_the_whole(resharing: Resharing) -> None:
    """However many versions a secret has; a page where nothing could be read leads on."""
    for path in ("team/b", "team/c", "team/c", "team/c", "team/c"):
        put(resharing, path)
    rotate(resharing)
    for path in ("team/a", "team/b", "team/d"):
        put(resharing, path)
    whole = list_secrets(resharing, 1)
    assert [(one.path, one.versions) for one in whole] == [("team/b", 1), ("team/c", 4)]
    for rows_at_once in range(1, 10):
        pages = read_pages(resharing, rows_at_once)
        assert [one for page in pages for one in page] == whole
        assert (len(pages) == 1) == (rows_at_once > 8)
    assert read_pages(resharing, 2)[0] == []


@pytest.mark.parametrize("caller", [RECOVER, NEXUS, KEEPER, APP], ids=lambda caller: caller.role)
def test_only_operators_superusers_and_auditors_see_it(resharing: Resharing, caller: Caller) -> None:
    """It names secrets."""
    with pytest.raises(DeniedError, match="auditor or operator or superuser"):
        resharing.core.impact.list_page(caller, 1)
    entry = resharing.core.list_entries()[-1]
    assert (entry.actor, entry.action, entry.decision) == (caller.spiffe_id, "root.impact", "deny")


def test_a_generation_that_was_never_made_has_no_impact(resharing: Resharing) -> None:
    """Nor is there a generation 0; an empty list would look like good news."""
    with pytest.raises(InvalidArgumentError, match="^generation: got 0, want 1 or more"):
        resharing.core.impact.list_page(OPERATOR, 0)
    with pytest.raises(NotFoundError, match="no generation 2: the last one made is 1"):
        resharing.core.impact.list_page(OPERATOR, 2)


def test_nobody_waits(resharing: Resharing) -> None:
    """A secret may have any number of versions: the work ends with the call."""
    put(resharing, "team/a")
    with pytest.raises(CallerGoneError):
        resharing.core.impact.list_page(OPERATOR, 1, is_wanted=lambda: False)


def test_a_store_that_was_put_back_is_noticed(resharing: Resharing) -> None:
    """What it has not is not told as what there is not."""
    put(resharing, "team/a")
    tamper(resharing.core.folder, "UPDATE meta SET revision = revision - 1")
    with pytest.raises(StoreLostError):
        resharing.core.impact.list_page(OPERATOR, 1)


def test_a_sealed_nexus_refuses(resharing: Resharing) -> None:
    """It has no key that proves when flips were."""
    resharing.core.seal.seal(OPERATOR, "", seconds=10)
    with pytest.raises(SealedError):
        resharing.core.impact.list_page(OPERATOR, 1)
