"""How the root key stands, as messages of RootService."""

from collections.abc import Sequence

from nexus.admin.operations.impact import ImpactPage
from nexus.admin.operations.operations import OperationView, RootView
from nexus.admin.operations.progress import JobView
from nexus.keys.operation.preflight import Check
from nexus.keys.operation.record import Depth, EndedRecord, Outcome, Step
from nexus.keys.records import GenerationRecord, GenerationState, KekState, KeyringRecord
from nexus.server.moments import to_time
from nexus.store.rewrapping import QuarantineRow, VersionKey
from shardhold.v1 import root_pb2 as pb

DEPTHS = {
    Depth.RESHARE: pb.DEPTH_RESHARE,
    Depth.ROTATE: pb.DEPTH_ROTATE,
    Depth.EMERGENCY: pb.DEPTH_EMERGENCY,
}
STEPS = {
    Step.PREPARED: pb.STEP_PREPARED,
    Step.DISTRIBUTED: pb.STEP_DISTRIBUTED,
    Step.FLIPPED: pb.STEP_FLIPPED,
}
OUTCOMES = {Outcome.SETTLED: pb.OUTCOME_SETTLED, Outcome.ABORTED: pb.OUTCOME_ABORTED}
KEK_STATES = {
    KekState.CURRENT: pb.KEK_STATE_CURRENT,
    KekState.OLD: pb.KEK_STATE_OLD,
    KekState.TAINTED: pb.KEK_STATE_TAINTED,
}
GENERATION_STATES = {
    GenerationState.PENDING: pb.GENERATION_STATE_PENDING,
    GenerationState.ACTIVE: pb.GENERATION_STATE_ACTIVE,
    GenerationState.DECRYPT_ONLY: pb.GENERATION_STATE_DECRYPT_ONLY,
    GenerationState.RETIRED: pb.GENERATION_STATE_RETIRED,
    GenerationState.COMPROMISED: pb.GENERATION_STATE_COMPROMISED,
    GenerationState.DESTROYED: pb.GENERATION_STATE_DESTROYED,
    GenerationState.ABORTED: pb.GENERATION_STATE_ABORTED,
}


def to_checks(checks: Sequence[Check]) -> list[pb.Check]:
    """Tell the lines of a preflight."""
    return [pb.Check(name=one.name, detail=one.found, refusal=one.reason or "") for one in checks]


def to_root(view: RootView) -> pb.GetOperationResponse:
    """Tell how the root key stands."""
    current, generation = view.current, view.generation
    return pb.GetOperationResponse(
        generation=current.generation,
        set_number=current.set_number,
        threshold=current.threshold,
        keepers=len(current.members),
        drawn_at=to_time(current.drawn_at),
        operation=to_operation(view.operation),
        last=_to_ended(view.last),
        dead_sets=view.dead_sets,
        created_at=to_time(generation.created_at if generation else 0),
        activated_at=to_time(generation.activated_at if generation else 0),
        job=to_job(view.job),
        keks=_to_keks(view.keyring),
        next_scheduled_at=to_time(view.next.at if view.next else 0),
        paused=view.paused,
        next_scheduled=DEPTHS[view.next.depth] if view.next else pb.DEPTH_UNSPECIFIED,
    )


def to_operation(view: OperationView | None) -> pb.RootOperation | None:
    """Tell an operation in progress."""
    if view is None:
        return None
    record = view.record
    return pb.RootOperation(
        operation_id=record.id,
        depth=DEPTHS[record.depth],
        step=STEPS[record.step],
        reason=record.reason,
        actor=record.actor,
        started_at=to_time(record.started_at),
        stepped_at=to_time(record.stepped_at),
        set_from=record.source.set_number,
        set_to=record.target.set_number,
        threshold=view.threshold,
        keepers=view.keepers,
        holders=view.holders,
        quorum=record.quorum,
        waits_for=view.waits_for,
        generation_from=record.source.generation,
        generation_to=record.target.generation,
        kek_from=record.source.kek_id,
        kek_to=record.target.kek_id,
        kcv=view.kcv,
    )


def to_generation(number: int, record: GenerationRecord) -> pb.Generation:
    """Tell the life of one root key."""
    return pb.Generation(
        generation=number,
        state=GENERATION_STATES[record.state],
        kcv=record.kcv,
        created_at=to_time(record.created_at),
        activated_at=to_time(record.activated_at),
        retired_at=to_time(record.retired_at),
        suspected_at=to_time(record.suspected_at),
        found_at=to_time(record.found_at),
        actor=record.actor,
        reason=record.reason,
        is_emergency=record.is_emergency,
        without_backup=record.without_backup,
        people_had_it_at=to_time(record.people_had_it_at),
    )


def to_impact(page: ImpactPage) -> pb.ListImpactResponse:
    """Tell a page of what a holder of a root key could read."""
    secrets = (
        pb.ExposedSecret(
            path=one.path,
            versions=one.versions,
            newest_version=one.newest_version,
            written_at=to_time(one.written_at),
            is_current=one.is_current,
        )
        for one in page.secrets
    )
    return pb.ListImpactResponse(
        state=GENERATION_STATES[page.state] if page.state else pb.GENERATION_STATE_UNSPECIFIED,
        until=to_time(page.until),
        until_revision=page.until_revision,
        secrets=secrets,
        next=page.next,
    )


def to_quarantined(row: QuarantineRow) -> pb.QuarantinedVersion:
    """Tell a version that did not open."""
    return pb.QuarantinedVersion(
        key=to_key(row.key),
        kek_id=row.kek_id,
        reason=row.reason,
        found_at=to_time(row.found_at),
        abandoned_by=row.abandoned_by,
    )


def to_key(key: VersionKey) -> pb.VersionKey:
    """Tell what names a version."""
    path = key.path.encode(errors="surrogateescape").decode(errors="backslashreplace")  # of a damaged one
    return pb.VersionKey(path=path, incarnation=key.incarnation, version=key.version)


def _to_ended(record: EndedRecord | None) -> pb.EndedOperation | None:
    if record is None:
        return None
    return pb.EndedOperation(
        operation_id=record.id,
        depth=DEPTHS[record.depth],
        outcome=OUTCOMES[record.outcome],
        detail=record.detail,
        ended_at=to_time(record.ended_at),
        set_from=record.source.set_number,
        set_to=record.target.set_number,
        generation_from=record.source.generation,
        generation_to=record.target.generation,
    )


def to_job(view: JobView | None) -> pb.KeyringJob | None:
    """Tell how far the keyring job is."""
    if view is None:
        return None
    return pb.KeyringJob(
        rows_total=view.rows_total,
        rows_left=view.rows_left,
        rows_per_second=view.rows_per_second,
        seconds_left=view.seconds_left,
        quarantine=view.quarantine,
        waits_for=view.waits_for,
        paused=view.paused,
    )


def _to_keks(keyring: KeyringRecord) -> list[pb.Kek]:
    keks = sorted((int(name), kek) for name, kek in keyring.keks.items())
    return [
        pb.Kek(
            id=number,
            state=KEK_STATES[kek.state],
            verified_at=to_time(kek.verified_at),
            generation=kek.generation,
            abandoned=kek.abandoned,
        )
        for number, kek in keks
    ]
