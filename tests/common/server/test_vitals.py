"""What every server tells of itself: its SVID, its build, its process."""

from datetime import timedelta
from pathlib import Path

from prometheus_client import CollectorRegistry

from common.server.build import load_revision
from common.server.vitals import SvidExpiry, Vitals
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity


def test_expiry_is_remembered_when_there_is_no_svid_any_more() -> None:
    """Just then somebody has to see that it has expired."""
    authority = Authority("example.test")
    identity = FixedIdentity(None)
    expiry = SvidExpiry(identity)
    assert expiry.find() is None
    identity.svid = svid = authority.issue("/shardhold/nexus/n1")
    assert expiry.find() == svid.expires_at
    identity.svid = None
    assert expiry.find() == svid.expires_at
    identity.svid = later = authority.issue("/shardhold/nexus/n1", lifetime=timedelta(days=2))
    assert expiry.find() == later.expires_at != svid.expires_at


def test_vitals_of_a_process() -> None:
    """Build, memory, SVID and what the kernel tells; no sample for an SVID that never was."""
    registry = CollectorRegistry()
    expiry = SvidExpiry(FixedIdentity(None))
    Vitals({}, version="1.2.3", svid_expiry=expiry, memory_protection=3).register(registry)
    read = registry.get_sample_value
    assert read("shardhold_build_info", {"version": "1.2.3", "revision": ""}) == 1
    assert read("shardhold_memory_protection_level") == 3
    assert read("shardhold_svid_expiry_timestamp_seconds") is None
    assert (read("process_open_fds") or 0) > 2
    assert (read("process_resident_memory_bytes") or 0) > 1 << 20


def test_revision_is_what_the_build_wrote(tmp_path: Path) -> None:
    """A checkout has no such file; a build without one wrote an empty line."""
    file = tmp_path / "REVISION"
    assert load_revision(file) == ""
    file.write_text("\n")
    assert load_revision(file) == ""
    file.write_text("9d9aaaf0\n")
    assert load_revision(file) == "9d9aaaf0"
