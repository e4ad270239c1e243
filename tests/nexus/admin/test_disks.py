"""How much room the folders of a nexus take and have left."""

import shutil
from pathlib import Path

from nexus.admin.disks import LOOK_S, Disks
from tests.kit.manual_clock import ManualClock
from tests.kit.waiting import wait_until


def test_folders_are_measured_by_their_own_files(tmp_path: Path) -> None:
    """What lies deeper is not the nexus's; a folder that is not there is left out, and found when it comes."""
    data, backup = tmp_path / "data", tmp_path / "backup"
    (data / "deeper").mkdir(parents=True)
    (data / "nexus.db").write_bytes(bytes(300))
    (data / "nexus.db-wal").write_bytes(bytes(40))
    (data / "deeper" / "other").write_bytes(bytes(5000))
    disks = Disks({"data": data, "backup": backup}, ManualClock())
    assert disks.views == {}
    disks.look()
    assert list(disks.views) == ["data"]
    view, disk = disks.views["data"], shutil.disk_usage(data)
    assert (view.used, view.size) == (340, disk.total)
    assert 0 < view.free < view.size
    backup.mkdir()
    disks.look()
    assert disks.views["backup"].used == 0


def test_they_are_looked_at_again_and_again(tmp_path: Path) -> None:
    """At the start, and each ten seconds until the end."""
    clock = ManualClock()
    disks = Disks({"data": tmp_path}, clock)
    disks.start()
    wait_until(lambda: "data" in disks.views)
    (tmp_path / "file").write_bytes(bytes(7))
    assert clock.wait_for_waiters()
    assert disks.views["data"].used == 0
    clock.advance(LOOK_S)
    wait_until(lambda: disks.views["data"].used == 7)
    disks.stop()
