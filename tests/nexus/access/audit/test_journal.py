"""What the nexus says of itself in the audit, as it goes through its states."""

from pathlib import Path

import msgspec
import pytest

from common.errors import WrongStateError
from common.forms.audit.line import CheckpointLine, Line
from common.forms.audit.segment import list_segments
from common.forms.audit.verify import verify
from nexus.access.audit.journal import Journal
from nexus.lifecycle.states import State
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import NexusCore
from tests.nexus.failing_store import FailingStore
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
