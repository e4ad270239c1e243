"""The signs of life that a status tells: where each comes from, and who sees them."""

from datetime import timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.clock import to_micros
from common.forms.audit.entry import Entry
from common.server.edge import Call
from nexus.access.gate import Caller
from nexus.admin.vitals import ProcessSigns, VitalSigns
from shardhold.v1 import cluster_pb2 as pb
from tests.kit.authority import NOW
from tests.nexus.conftest import MakeNexus, WaitUntil
from tests.nexus.core import APP, AUDITOR, OPERATOR, RECOVER, SUPERUSER, NexusCore

METHOD = "/shardhold.v1.ClusterService/GetStatus"
MOMENTS = ("told_at", "started_at", "svid_expires_at")
PARTS = ("audit", "rotation", "keyring_job", "backup")


def get_status(core: NexusCore, caller: Caller = OPERATOR) -> pb.GetStatusResponse:
    """Ask through the handler, as the wire does."""
    (method,) = [method for method in core.list_methods() if method.name == METHOD]
    answer = method.handle(Call(caller.spiffe_id), pb.GetStatusRequest())
    assert isinstance(answer, pb.GetStatusResponse)
    return answer


@pytest.mark.parametrize("caller", [SUPERUSER, OPERATOR, AUDITOR, RECOVER], ids=lambda caller: caller.role)
def test_people_see_the_signs_of_life(make_nexus: MakeNexus, caller: Caller) -> None:
    """Moments by the clock of the nexus, the audit's last line, and that there are no backups."""
    core = make_nexus()
    core.audit.append(Entry(at=0, actor="", action="test"))
    told = get_status(core, caller)
    assert told.told_at.ToDatetime() == core.clock.now().replace(tzinfo=None)
    assert told.audit.seq >= 2
    assert (told.audit.fault, told.audit.unexported) == ("", 0)
    assert not told.backup.configured
    assert not told.HasField("keyring_job")


def test_workloads_see_none(make_nexus: MakeNexus) -> None:
    """Nothing but state and version."""
    told = get_status(make_nexus(), APP)
    assert told == pb.GetStatusResponse(state=pb.STATE_READY, version=told.version)
    assert not any(told.HasField(name) for name in (*MOMENTS, *PARTS))  # type: ignore[arg-type]


def test_a_failing_audit_is_told(make_nexus: MakeNexus) -> None:
    """With its reason."""
    core = make_nexus()
    with core.audit_failing():
        assert get_status(core).audit.fault == core.audit.failing != ""


def test_keepers_tell_the_mark_that_they_took(make_nexus: MakeNexus, wait_until: WaitUntil) -> None:
    """Where the store stood and when; a keeper that was never reached has none."""
    core = make_nexus()
    core.keepers["keeper-3"].is_reachable = False
    core.pool.start()
    wait_until(lambda: [bool(seat.status.mark) for seat in core.pool.seats] == [True, True, False])
    told = get_status(core)
    with core.store.read() as reader:
        meta = reader.load_meta()
    first, second, absent = told.keepers
    assert (first.mark.timeline, first.mark.revision) == (meta.timeline, meta.revision)
    assert first.mark == second.mark
    assert first.mark.made_at.ToDatetime() == core.clock.now().replace(tzinfo=None)
    assert not absent.HasField("mark")


def test_what_the_schedule_and_the_job_say_is_told(make_nexus: MakeNexus, wait_until: WaitUntil) -> None:
    """Since when the root key is current, as the schedule saw it last."""
    core = make_nexus()
    core.driver.start()
    wait_until(lambda: core.schedule.view.activated_at)
    told = get_status(core)
    assert told.rotation.activated_at == _to_timestamp(core.schedule.view.activated_at)
    assert (told.rotation.due, told.rotation.paused) == (False, False)


def test_the_process_tells_svid_and_calls(make_nexus: MakeNexus) -> None:
    """An SVID that has expired is told as well; none is told as 0."""
    core, expires_at, calls = make_nexus(), NOW + timedelta(minutes=5), iter((41, 42))
    signs = ProcessSigns(find_svid_expiry=lambda: expires_at, count_calls=lambda: next(calls))
    vital = _make(core, signs)
    assert (vital.take().svid_expires_at, vital.take().calls) == (to_micros(expires_at), 42)
    assert _make(core, ProcessSigns()).take().svid_expires_at == 0


def _make(core: NexusCore, signs: ProcessSigns) -> VitalSigns:
    return VitalSigns(
        signs,
        audit=core.audit,
        exporter=core.exporter,
        schedule=core.schedule,
        job=core.job,
        backups=core.backups,
        clock=core.clock,
    )


def _to_timestamp(microseconds: int) -> Timestamp:
    moment = Timestamp()
    moment.FromMicroseconds(microseconds)
    return moment
