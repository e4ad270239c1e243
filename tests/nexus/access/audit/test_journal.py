"""What the nexus says of itself in the audit, as it goes through its states."""

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from common.errors import WrongStateError
from common.forms.audit.line import CheckpointLine, Line
from common.forms.audit.segment import list_segments
from common.forms.audit.verify import verify
from nexus.access.audit.journal import Journal
from nexus.access.audit.log import AuditLog
from nexus.lifecycle.states import State
from tests.kit.manual_clock import ManualClock
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.cluster import NEXUS_NAME, FoundCluster
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import NexusCore
from tests.nexus.failing_store import FailingStore
from tests.nexus.flipping import Flipping
from tests.nexus.founder import begin, confirm


def list_ready(core: NexusCore) -> list[str]:
    """List what was said of becoming ready."""
    return [entry.detail for entry in core.list_all_entries() if entry.action == "nexus.ready"]


def list_timelines(folder: Path) -> list[int]:
    """List the timelines that there are segments of."""
    return sorted({segment.timeline for segment in list_segments(folder)})


def list_checkpoints(folder: Path) -> list[CheckpointLine]:
    """List the checkpoints of all segments."""
    decoder = msgspec.json.Decoder(Line)
    lines = [
        decoder.decode(encoded)
        for segment in list_segments(folder)
        for encoded in (folder / segment.name).read_bytes().splitlines()
    ]
    return [line for line in lines if isinstance(line, CheckpointLine)]


def test_a_ready_nexus_says_so_and_signs(make_nexus: MakeNexus, tmp_path: Path) -> None:
    """With the key of its generation, and the genesis record that leads to it."""
    nexus = make_nexus()
    serving = nexus.lifecycle.require_serving()
    public_key, genesis = serving.root_key.public_key, serving.genesis.encode()
    assert list_ready(nexus) == ["generation 1"]
    nexus.audit.close()
    (checkpoint,) = list_checkpoints(tmp_path)
    assert (checkpoint.public_key, checkpoint.chain) == (public_key, [genesis])
    assert verify(tmp_path, public_keys=[public_key]).faults == []


@pytest.mark.parametrize("state", [State.SEALED, State.RECOVERING])
def test_the_last_checkpoint_is_signed_before_the_key_is_wiped(
    make_nexus: MakeNexus, tmp_path: Path, state: State
) -> None:
    """It covers all lines of that time and is written as the next line; the chain goes on after it, unsigned."""
    nexus = make_nexus()
    public_key = nexus.lifecycle.require_serving().root_key.public_key
    nexus.lifecycle.withdraw(state, seconds=0)
    nexus.audit.append(make_entry("later"))
    nexus.audit.close()
    assert [checkpoint.public_key for checkpoint in list_checkpoints(tmp_path)] == [public_key, b""]
    signed, unsigned = list_checkpoints(tmp_path)
    assert signed.seq == unsigned.seq - 2
    report = verify(tmp_path, public_keys=[public_key])
    assert (report.faults, report.chains[-1].signed_seq) == ([], signed.seq)


def test_a_wipe_does_not_wait_for_a_line_that_hangs_with_the_disk(make_nexus: MakeNexus, tmp_path: Path) -> None:
    """There is no last checkpoint then."""
    nexus = make_nexus()
    with nexus.audit._lock:  # as while a line is being written
        nexus.lifecycle.withdraw(State.SEALED, seconds=0)
    nexus.audit.close()
    assert [checkpoint.public_key for checkpoint in list_checkpoints(tmp_path)] == [b""]


def test_a_ready_nexus_goes_on_in_the_timeline_of_its_store(core: NexusCore, tmp_path: Path) -> None:
    """Which init begins, as does an accepted older store."""
    assert list_timelines(tmp_path) == [0]
    confirm(core, begin(core))
    assert list_timelines(tmp_path) == [0, 1]


def test_the_earlier_chain_goes_on_when_the_store_cannot_be_read(
    core: NexusCore, failing: FailingStore, tmp_path: Path
) -> None:
    """The nexus is ready all the same, and signs."""
    begun = begin(core)
    failing.at_write = lambda: setattr(failing, "cannot_read", True)
    confirm(core, begun)
    failing.cannot_read = False
    assert list_ready(core) == ["generation 1"]
    assert list_timelines(tmp_path) == [0]
    core.audit.close()
    assert all(checkpoint.public_key for checkpoint in list_checkpoints(tmp_path))


def test_a_key_that_was_withdrawn_meanwhile_is_not_signed_with(core: NexusCore) -> None:
    """Nothing is said of being ready."""
    journal = Journal(core.store, core.audit, core.clock)
    with pytest.raises(WrongStateError):
        journal.follow(State.READY, core.lifecycle)
    assert list_ready(core) == []


@pytest.fixture
def flipping(tmp_path: Path, found: FoundCluster) -> Iterator[Flipping]:
    """A ready nexus with a line that its first key is to sign."""
    nexus = Flipping(tmp_path / "audit", found(keepers=3, threshold=2))
    Journal(nexus.store, nexus.log, ManualClock()).follow(State.READY, nexus.lifecycle)
    nexus.log.append(make_entry("of generation 1"))
    yield nexus
    nexus.close()


def test_each_key_signs_until_the_next_one_follows(flipping: Flipping) -> None:
    """Over two flips, each with a last checkpoint before it; every line is signed, and the files lead from genesis."""
    journal = Journal(flipping.store, flipping.log, ManualClock())
    for generation in (2, 3):
        flipping.flip()
        journal.follow_key(flipping.serving)
        flipping.wipe_replaced()
        flipping.log.append(make_entry(f"of generation {generation}"))
        flipping.work()
    flipping.log.close()
    chain = flipping.cluster.chain
    signed_by = [checkpoint.chain for checkpoint in list_checkpoints(flipping.folder)]
    assert signed_by == [list(chain.records[:end]) for end in (1, 2, 3)]
    report = verify(flipping.folder, genesis=flipping.cluster.genesis)
    assert (report.faults, report.chains[-1].signed_seq) == ([], report.chains[-1].seq)


def test_a_process_that_died_before_the_next_key_signed(flipping: Flipping, tmp_path: Path) -> None:
    """The next one signs the lines of before too. The key of before may sign nothing after that."""
    flipping.flip()
    left, old = tmp_path / "left", flipping.replaced[0]
    shutil.copytree(flipping.folder, left)  # as a kill leaves it
    root = flipping.serving.root
    for signer, links, why in (
        (root.root_key, root.chain.records, ""),
        (old, root.chain.records[:1], "by generation 1, after one by generation 2"),
    ):
        with closing(AuditLog.open(left, nexus=NEXUS_NAME, timeline=1)) as log:
            log.set_signer(signer, links)
            log.append(make_entry("later"))
        report = verify(left, genesis=flipping.cluster.genesis)
        assert [why in fault.why for fault in report.faults] == [True] * bool(why)
        assert report.chains[-1].signed == 1


def test_a_key_that_was_withdrawn_does_not_follow(flipping: Flipping) -> None:
    """A seal that came first leaves no signer."""
    journal = Journal(flipping.store, flipping.log, ManualClock())
    flipping.flip()
    journal.follow(State.SEALED, flipping.lifecycle)
    journal.follow_key(flipping.serving)
    flipping.log.append(make_entry("later"))
    flipping.log.close()
    assert [len(checkpoint.chain) for checkpoint in list_checkpoints(flipping.folder)] == [1, 0]


def test_what_cannot_be_noted_stops_nothing(core: NexusCore) -> None:
    """The audit says that it is failing in every other way."""
    core.audit.close()
    Journal(core.store, core.audit, core.clock).note("clock.jump", "", "+9.0 s")
    assert core.list_all_entries() == []


def test_notes_about_keepers_never_use_the_reserve(core: NexusCore) -> None:
    """While the audit fails, keepers leave its room to what people and the nexus itself have to say."""
    journal = Journal(core.store, core.audit, core.clock)
    core.audit._failing = "no space left"
    journal.note_keeper("keeper.fault", "keeper-1", "lies")
    journal.note("clock.jump", "", "+9.0 s")
    assert [entry.action for entry in core.list_all_entries()] == ["clock.jump"]
