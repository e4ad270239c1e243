"""RootService's messages: what is asked for reaches what does it, and what that says comes back whole."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from common.errors import InvalidArgumentError
from common.server.edge import Call
from nexus.admin.operations.impact import ExposedSecret, ImpactPage
from nexus.admin.operations.operations import OperationView, RootView
from nexus.admin.operations.progress import JobView
from nexus.admin.operations.rotate_plan import RotatePlan
from nexus.keys.operation.record import Depth, Driver, EndedRecord, Numbers, OperationRecord, Outcome, Step
from nexus.keys.operation.schedule import Scheduled
from nexus.keys.records import (
    GenerationRecord,
    GenerationState,
    KekRecord,
    KekState,
    KeyringRecord,
    MemberRecord,
    SetState,
    ShardSetRecord,
)
from nexus.server import root_messages
from nexus.server.auth import Authenticator
from nexus.server.root import RootHandlers
from nexus.store.rewrapping import QuarantineRow, VersionKey
from shardhold.v1 import root_pb2 as pb
from tests.nexus.core import OPERATOR, ROLES

ID, KCV = b"i" * 16, bytes(range(32))
AT = 1_700_000_000_123_456
AT_TIME = Timestamp(seconds=1_700_000_000, nanos=123_456_000)
CALL = Call(OPERATOR.spiffe_id, OPERATOR.address, None)
KEY = VersionKey("team/db", b"n" * 16, 3)
KEY_MESSAGE = pb.VersionKey(path="team/db", incarnation=b"n" * 16, version=3)

OPERATION = OperationRecord(
    id=ID,
    depth=Depth.EMERGENCY,
    step=Step.DISTRIBUTED,
    fence=9,
    driver=Driver("n1", ID),
    reason="a laptop was lost",
    actor=OPERATOR.spiffe_id,
    started_at=AT,
    stepped_at=AT + 1,
    source=Numbers(3, 7, 4),
    target=Numbers(4, 8, 5),
    quorum=4,
)
VIEW = OperationView(
    record=OPERATION, threshold=3, keepers=5, holders=("k1", "k2"), kcv=KCV, waits_for="keeper-5 to hold set 8"
)
GENERATION = GenerationRecord(
    state=GenerationState.COMPROMISED,
    kcv=KCV,
    created_at=AT,
    activated_at=AT + 1,
    retired_at=AT + 2,
    suspected_at=AT + 3,
    found_at=AT + 4,
    actor="alice",
    reason="yearly",
    is_emergency=True,
    without_backup="none yet",
    people_had_it_at=AT + 5,
)
MEMBER = MemberRecord("k1", "spiffe://example.test/k1", "k1:1", 1, bytes(32))
ROOT = RootView(
    current=ShardSetRecord(SetState.CURRENT, 3, ID, 7, 1, 2, (MEMBER,) * 3, drawn_at=AT),
    generation=GENERATION,
    keyring=KeyringRecord(
        {
            "10": KekRecord(b"", KekState.CURRENT, 3),
            "9": KekRecord(b"", KekState.TAINTED, 2, verified_at=AT, abandoned=2),
        }
    ),
    job=JobView(
        rows_total=100, rows_left=40, rows_per_second=7.5, seconds_left=0.0, quarantine=1, waits_for="", paused="alice"
    ),
    next=Scheduled(Depth.RESHARE, AT),
    paused="maintenance",
    operation=VIEW,
    last=EndedRecord(ID, Depth.ROTATE, Outcome.ABORTED, "wrong day", AT, Numbers(3, 7, 4), Numbers(4, 8, 5)),
    dead_sets=6,
)


class Played:
    """Stands in the place of operations, quarantine and schedule: keeps what it was asked, and answers what it has."""

    def __init__(self, answer: Any = None) -> None:
        self.answer = answer
        self.asked: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(caller: Any, *arguments: Any, **named: Any) -> Any:
            assert caller.spiffe_id == OPERATOR.spiffe_id
            self.asked.append((name, *arguments, *named.items()))
            return self.answer

        return ask


def serve(played: Played) -> RootHandlers:
    """Return handlers of which every part is *played*."""
    part = cast("Any", played)
    return RootHandlers(part, part, part, part, Authenticator(ROLES))


def start(**fields: Any) -> tuple[tuple[Any, ...], pb.StartOperationResponse]:
    """Begin what these fields say; return what was asked for, and the answer."""
    played = Played(((), VIEW))
    answer = serve(played).start_operation(CALL, pb.StartOperationRequest(operation_id=ID, **fields))
    (asked,) = played.asked
    return asked, answer


def test_a_rotation_is_asked_for_with_its_plan() -> None:
    """A superuser's words as well; who may say them is decided where the call is authorised."""
    asked, answer = start(depth=pb.DEPTH_ROTATE, reason="yearly", force=True, without_backup="none yet", dry_run=True)
    plan = RotatePlan(is_forced=True, without_backup="none yet")
    assert asked == ("rotate", ID, plan, "yearly", ("dry_run", True))
    assert answer.operation == root_messages.to_operation(VIEW)


def test_an_emergency_says_since_when() -> None:
    """Or nothing: then it is not known."""
    asked, _ = start(depth=pb.DEPTH_EMERGENCY, reason="lost", suspected_since=AT_TIME)
    assert asked == ("rotate", ID, RotatePlan(is_emergency=True, suspected_at=AT), "lost", ("dry_run", False))
    asked, _ = start(depth=pb.DEPTH_EMERGENCY, without_backup="no time")
    assert asked[2] == RotatePlan(is_emergency=True, without_backup="no time")


def test_a_reshare_is_none_of_these() -> None:
    """It goes its own way."""
    asked, _ = start(depth=pb.DEPTH_RESHARE, threshold=3, remove=["k5"], lost=["k5"])
    assert (asked[0], asked[2].threshold, asked[2].remove, asked[2].lost) == ("reshare", 3, ("k5",), ("k5",))


RESHARES: Mapping[str, Any] = {"threshold": 3, "add": [pb.NewKeeper(name="k")], "remove": ["k"], "lost": ["k"]}
ROTATIONS: Mapping[str, Any] = {"without_backup": "x", "force": True, "suspected_since": AT_TIME}


@pytest.mark.parametrize(
    ("depth", "field", "value"),
    [
        *((depth, *one) for depth in (pb.DEPTH_ROTATE, pb.DEPTH_EMERGENCY) for one in RESHARES.items()),
        *((pb.DEPTH_RESHARE, *one) for one in ROTATIONS.items()),
        (pb.DEPTH_RESHARE, "suspected_since", Timestamp()),
        (pb.DEPTH_ROTATE, "suspected_since", AT_TIME),
        (pb.DEPTH_EMERGENCY, "force", True),
    ],
)
def test_what_another_depth_would_use_is_refused(depth: int, field: str, value: Any) -> None:
    """By the name of the field: ignored, it would leave somebody in the belief that it counts."""
    with pytest.raises(InvalidArgumentError, match=f"^{field}: given, want none with the depth "):
        start(depth=depth, **{field: value})


@pytest.mark.parametrize("depth", [0, 4, 99])
def test_an_unknown_depth_is_refused(depth: int) -> None:
    """Never taken for another one."""
    with pytest.raises(InvalidArgumentError, match=rf"^depth: got {depth}, want one of \[1, 2, 3\]"):
        start(depth=depth)


@pytest.mark.parametrize("seconds", [2**63 - 1, -(2**63)])
def test_a_moment_of_no_calendar_is_refused(seconds: int) -> None:
    """On the wire it may be any number of seconds."""
    with pytest.raises(InvalidArgumentError, match="^suspected_since: "):
        start(depth=pb.DEPTH_EMERGENCY, suspected_since=Timestamp(seconds=seconds))


def test_how_the_root_key_stands_comes_back_whole() -> None:
    """Operation, job, KEKs by number, and the last one that ended."""
    answer = serve(Played(ROOT)).get_operation(CALL, pb.GetOperationRequest())
    operation = pb.RootOperation(
        operation_id=ID,
        depth=pb.DEPTH_EMERGENCY,
        step=pb.STEP_DISTRIBUTED,
        reason="a laptop was lost",
        actor=OPERATOR.spiffe_id,
        started_at=AT_TIME,
        stepped_at=Timestamp(seconds=AT_TIME.seconds, nanos=AT_TIME.nanos + 1000),
        set_from=7,
        set_to=8,
        threshold=3,
        keepers=5,
        holders=["k1", "k2"],
        quorum=4,
        waits_for="keeper-5 to hold set 8",
        generation_from=3,
        generation_to=4,
        kek_from=4,
        kek_to=5,
        kcv=KCV,
    )
    last = pb.EndedOperation(
        operation_id=ID,
        depth=pb.DEPTH_ROTATE,
        outcome=pb.OUTCOME_ABORTED,
        detail="wrong day",
        ended_at=AT_TIME,
        set_from=7,
        set_to=8,
        generation_from=3,
        generation_to=4,
    )
    job = pb.KeyringJob(
        rows_total=100, rows_left=40, rows_per_second=7.5, seconds_left=0.0, quarantine=1, paused="alice"
    )
    assert answer == pb.GetOperationResponse(
        generation=3,
        set_number=7,
        threshold=2,
        keepers=3,
        drawn_at=AT_TIME,
        operation=operation,
        last=last,
        dead_sets=6,
        created_at=AT_TIME,
        activated_at=Timestamp(seconds=AT_TIME.seconds, nanos=AT_TIME.nanos + 1000),
        job=job,
        keks=[
            pb.Kek(id=9, state=pb.KEK_STATE_TAINTED, verified_at=AT_TIME, generation=2, abandoned=2),
            pb.Kek(id=10, state=pb.KEK_STATE_CURRENT, generation=3),
        ],
        next_scheduled_at=AT_TIME,
        next_scheduled=pb.DEPTH_RESHARE,
        paused="maintenance",
    )


def test_what_there_is_not_is_unset() -> None:
    """Not zero, nor 1970."""
    view = RootView(
        current=ShardSetRecord(SetState.CURRENT, 1, ID, 1, 1, 2, (MEMBER,) * 3),
        generation=None,
        keyring=KeyringRecord({"2": KekRecord(b"", KekState.CURRENT, 1)}),
        job=None,
        next=None,
        paused="",
        operation=None,
        last=None,
        dead_sets=0,
    )
    answer = serve(Played(view)).get_operation(CALL, pb.GetOperationRequest())
    told = {field.name for field, _ in answer.ListFields()}
    assert told == {"generation", "set_number", "threshold", "keepers", "keks"}
    assert not answer.keks[0].HasField("verified_at")


def test_every_state_has_its_name_on_the_wire() -> None:
    """A new one has to be entered, or telling it would fail."""
    assert set(root_messages.DEPTHS) == set(Depth)
    assert set(root_messages.STEPS) == set(Step)
    assert set(root_messages.OUTCOMES) == set(Outcome)
    assert set(root_messages.KEK_STATES) == set(KekState)
    assert set(root_messages.GENERATION_STATES) == set(GenerationState)
    for state, number in root_messages.GENERATION_STATES.items():
        assert pb.GenerationState.Name(number) == f"GENERATION_STATE_{state.name}"


def test_the_history_is_told_from_the_first_generation_on() -> None:
    """Field by field."""
    active = GenerationRecord(GenerationState.ACTIVE, KCV)
    answer = serve(Played({10: active, 9: GENERATION})).list_generations(CALL, pb.ListGenerationsRequest())
    first, second = answer.generations
    assert (second.generation, second.state, second.HasField("created_at")) == (10, pb.GENERATION_STATE_ACTIVE, False)
    assert first == pb.Generation(
        generation=9,
        state=pb.GENERATION_STATE_COMPROMISED,
        kcv=KCV,
        **{
            name: Timestamp(seconds=AT_TIME.seconds, nanos=AT_TIME.nanos + 1000 * later)
            for later, name in enumerate(
                ("created_at", "activated_at", "retired_at", "suspected_at", "found_at", "people_had_it_at")
            )
        },
        actor="alice",
        reason="yearly",
        is_emergency=True,
        without_backup="none yet",
    )


def test_what_a_holder_could_read_is_told_page_by_page() -> None:
    """Field by field; a number of a damaged row comes back as it is."""
    secrets = [ExposedSecret("a", 2, -(2**63), AT, True), ExposedSecret("b", 1, 1, 0, False)]
    played = Played(ImpactPage(GenerationState.DECRYPT_ONLY, AT, 7, secrets, "c"))
    answer = serve(played).list_impact(CALL, pb.ListImpactRequest(generation=4, after="A"))
    assert played.asked == [("list_page", 4, ("after", "A"), ("is_wanted", CALL.is_wanted))]
    assert answer == pb.ListImpactResponse(
        state=pb.GENERATION_STATE_DECRYPT_ONLY,
        until=AT_TIME,
        until_revision=7,
        secrets=[
            pb.ExposedSecret(path="a", versions=2, newest_version=-(2**63), written_at=AT_TIME, is_current=True),
            pb.ExposedSecret(path="b", versions=1, newest_version=1),
        ],
        next="c",
    )
    nothing = serve(Played(ImpactPage(None, 0, 0, [], ""))).list_impact(CALL, pb.ListImpactRequest(generation=4))
    assert nothing == pb.ListImpactResponse()


def rows(count: int) -> Sequence[QuarantineRow]:
    return [QuarantineRow(KEY._replace(version=n), 4, "does not open", AT, "alice") for n in range(1, count + 1)]


def test_the_quarantine_is_listed_page_by_page() -> None:
    """A full page names the version that the next one begins after."""
    played = Played(rows(2))
    request = pb.ListQuarantineRequest(after=KEY_MESSAGE, limit=2)
    answer = serve(played).list_quarantine(CALL, request)
    assert played.asked == [("list", KEY, 2)]
    assert answer.rows[0] == pb.QuarantinedVersion(
        key=pb.VersionKey(path="team/db", incarnation=b"n" * 16, version=1),
        kek_id=4,
        reason="does not open",
        found_at=AT_TIME,
        abandoned_by="alice",
    )
    assert answer.next == answer.rows[1].key
    played = Played(rows(2))
    assert not serve(played).list_quarantine(CALL, pb.ListQuarantineRequest()).HasField("next")
    assert played.asked == [("list", None, 1000)]
    with pytest.raises(InvalidArgumentError, match="^limit: got 1001, want 0 to 1000"):
        serve(played).list_quarantine(CALL, pb.ListQuarantineRequest(limit=1001))


@pytest.mark.parametrize("number", [-(2**63), 2**63 - 1])
def test_a_damaged_row_is_listed_as_well(number: int) -> None:
    """Whatever its numbers are, they come back as they are; a time of no calendar is cut."""
    damaged = QuarantineRow(VersionKey("x", b"", number), number, "does not open", number, "")
    answer = serve(Played([damaged])).list_quarantine(CALL, pb.ListQuarantineRequest())
    (row,) = answer.rows
    assert (row.key.version, row.kek_id) == (number, number)
    row.found_at.ToDatetime()


def test_a_version_in_quarantine_is_named_by_its_key() -> None:
    """Tried again, or given up with a reason; one that is not named is not taken for an empty one."""
    played = Played()
    handlers = serve(played)
    handlers.retry_quarantined(CALL, pb.RetryQuarantinedRequest(key=KEY_MESSAGE))
    handlers.abandon_quarantined(CALL, pb.AbandonQuarantinedRequest(key=KEY_MESSAGE, reason="lost"))
    assert played.asked == [("retry", KEY), ("abandon", KEY, "lost")]
    with pytest.raises(InvalidArgumentError, match="^key: not given"):
        handlers.retry_quarantined(CALL, pb.RetryQuarantinedRequest())
    with pytest.raises(InvalidArgumentError, match="^key: not given"):
        handlers.abandon_quarantined(CALL, pb.AbandonQuarantinedRequest(reason="lost"))


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (pb.VersionKey(incarnation=bytes(16)), "path is 0 bytes, want 1 to 4096"),
        (pb.VersionKey(path="ü" * 2049), "path is 4098 bytes, want 1 to 4096"),
        (pb.VersionKey(path="x", incarnation=bytes(65)), "incarnation is 65 bytes, want at most 64"),
    ],
)
def test_a_key_that_no_row_has_is_refused(key: pb.VersionKey, message: str) -> None:
    """It would stand in the audit, however long."""
    played = Played()
    for make in (
        lambda: serve(played).retry_quarantined(CALL, pb.RetryQuarantinedRequest(key=key)),
        lambda: serve(played).abandon_quarantined(CALL, pb.AbandonQuarantinedRequest(key=key, reason="x")),
    ):
        with pytest.raises(InvalidArgumentError, match=f"^key: {message}"):
            make()
    assert played.asked == []


def test_rotations_are_paused_and_resumed() -> None:
    """With the reason that was given."""
    played = Played()
    handlers = serve(played)
    handlers.pause_rotation(CALL, pb.PauseRotationRequest(reason="a busy week"))
    handlers.resume_rotation(CALL, pb.ResumeRotationRequest())
    assert played.asked == [("pause", "a busy week"), ("resume",)]
