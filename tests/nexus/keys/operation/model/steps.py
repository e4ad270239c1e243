"""What may happen in the world of the model, how often, and how everything is mended at the end."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from common.keys.protected import ProtectedMemory
from nexus.keys import records
from nexus.keys.operation import job
from nexus.keys.operation import next_action as actions
from nexus.keys.operation.change import Change
from nexus.keys.operation.evidence import Backup, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, Numbers, Step, Waiver, WaiverKind
from nexus.keys.operation.refusal import Refused
from nexus.keys.operation.staging import next_numbers
from tests.nexus.keys.operation.made import DAY, make_key, make_order, make_preflight, make_set
from tests.nexus.keys.operation.model import promises
from tests.nexus.keys.operation.model.core import Core
from tests.nexus.keys.operation.model.keeper import Liar
from tests.nexus.keys.operation.model.nexus import Mode
from tests.nexus.keys.operation.model.store import Row
from tests.nexus.keys.operation.model.world import KEEPERS, World

BATCH = 4  # rows
ROUNDS = 300  # until everything is at rest


Members = tuple[tuple[str, ...], int]  # names, and the threshold


def list_members(facts: Facts) -> Members:
    return tuple(member.name for member in facts.current_set.members), facts.current_set.threshold


def choose_members(world: World) -> Members:
    """Choose who holds the next set; a keeper may join or leave."""
    names = world.chance.sample(KEEPERS, world.chance.choice((4, 5, 5, 6)))
    return tuple(names), world.chance.choice((2, 3))


def stage(world: World, facts: Facts, depth_renews: bool, *, timeline: int, members: Members, seen: Numbers) -> Staged:
    """Make a new set, and a new key with it."""
    numbers = next_numbers(facts, renews_key=depth_renews, seen=seen)
    names, threshold = members
    shard_set = make_set(numbers, names=names, threshold=threshold, timeline=timeline, nonce=world.next_serial())
    current_root = world.set_keys[facts.current_set.set_id]
    if not depth_renews:
        world.set_keys[shard_set.set_id] = current_root
        return Staged(shard_set, numbers.kek_id, None)
    root = world.set_keys[shard_set.set_id] = world.make_token("root")
    keks = world.open_current() | {numbers.kek_id: world.make_token("kek")}
    return Staged(shard_set, numbers.kek_id, make_key(root, numbers, keks))


# What people do.


def begin(world: World) -> None:
    nexus = world.nexus
    if not nexus.check_floor() or world.store.facts.operation is not None:
        return
    facts = world.store.facts
    depth = world.chance.choices(list(Depth), weights=(3, 5, 2))[0]
    members = choose_members(world) if depth is Depth.RESHARE else list_members(facts)
    staged = stage(world, facts, depth.renews_key, timeline=facts.meta.timeline, members=members, seen=Numbers())
    waivers = (Waiver(WaiverKind.BACKUP, "model", "alice"),) if world.chance.random() < 0.3 else ()
    change = world.core.prepare(
        facts,
        make_order(depth, keepers=members[0], threshold=members[1], is_forced=True, waivers=waivers),
        staged,
        make_preflight(
            reachable=frozenset(KEEPERS),
            backup=Backup(world.store.state.backup or facts.generation, 0),
            backup_max_age=DAY << 20,
        ),
        operation_id=world.make_token("operation")[:16],
        driver=nexus.driver,
        at=world.at,
    )
    if nexus.save(change):
        world.count("prepare", depth)
        begun = world.store.facts.operation
        assert begun is not None
        nexus.points.add(staged.shard_set.set_id)
        nexus.new_root = world.set_keys[staged.shard_set.set_id]
        nexus.memory = replace(nexus.memory, begun=begun.id, key_of=begun.id)


def abort(world: World) -> None:
    operation = world.store.facts.operation
    if operation is not None and world.nexus.check_floor():
        world.nexus.abort(world.store.facts)


def waive(world: World) -> None:
    operation = world.store.facts.operation
    if operation is not None and world.nexus.check_floor():
        kind = world.chance.choice((WaiverKind.THRESHOLD, WaiverKind.PROOF))
        waiver = Waiver(kind, "model", "alice")
        world.nexus.save(world.core.waive(world.store.facts, operation.ticket, waiver, at=world.at))


def seal(world: World) -> None:
    nexus = world.nexus
    if nexus.mode not in (Mode.READY, Mode.RECOVERING) or world.is_put_back:
        return
    facts = world.store.facts
    has_key = nexus.check_floor()
    change = world.core.end_operation(facts, keeps_flipped=True) if has_key else Change(facts.current)
    nexus.put_marks()
    world.commit(change, sealed=True, epoch=facts.meta.epoch + 1)
    world.count("seal")
    nexus.forget()
    nexus.mode = Mode.SEALED
    nexus.look()
    nexus.empty()


def unseal(world: World) -> None:
    """Custodians bring the key back."""
    nexus = world.nexus
    if nexus.mode not in (Mode.SEALED, Mode.RECOVERING):
        return
    facts = world.store.facts
    root = world.find_escrowed(facts)
    if world.is_newer(world.find_newest_mark()):
        nexus.root, nexus.mode = root, Mode.BLOCKED
        world.count("blocked")
        return
    world.is_put_back = False
    _replace(world, renews_key=False, timeline=facts.meta.timeline)
    world.count("unseal")


def accept(world: World) -> None:
    """Accept a store that was put back: a new timeline and a new generation, above every mark."""
    if world.nexus.mode is Mode.BLOCKED:
        timeline = max(world.store.state.meta.timeline, world.find_newest_mark().timeline) + 1
        _replace(world, renews_key=True, timeline=timeline)
        world.is_put_back = False
        world.count("accept")


def _replace(world: World, *, renews_key: bool, timeline: int) -> None:
    nexus, facts = world.nexus, world.store.facts
    staged = stage(
        world,
        facts,
        renews_key,
        timeline=timeline,
        members=list_members(facts),
        seen=world.seen_numbers() if renews_key else Numbers(),
    )
    change = world.core.replace_at_once(
        facts, staged, actor="alice", reason="model", revision=facts.meta.revision + 1, at=world.at
    )
    assert not isinstance(change, Refused), change
    world.commit(change, sealed=False, timeline=timeline, epoch=facts.meta.epoch + 1)
    nexus.forget()
    nexus.install(world.set_keys[staged.shard_set.set_id])


def starve(world: World) -> None:
    """Just after the distribution, the process ends and keepers stay away: whoever takes over cannot flip."""
    operation = world.store.facts.operation
    if operation is not None and operation.step is Step.DISTRIBUTED and world.nexus.check_floor():
        world.crash_nexus()
        for name in world.chance.sample(KEEPERS, 2):
            world.keepers[name].is_up = False
        world.recover()
        for _ in range(3):
            progress(world)
            world.now += 40.0


def renew_refused_set(world: World) -> None:
    """Too many keepers once held a newer set than the current one: another one is committed."""
    current = world.store.facts.current_set
    refused = world.refused_as_not_newer.get(current.set_id, set())
    if len(refused) > len(current.members) - current.threshold and world.nexus.check_floor():
        _replace(world, renews_key=False, timeline=current.timeline)
        world.count("renewed")


def verify_backup(world: World) -> None:
    world.store.state = replace(world.store.state, backup=world.store.facts.generation)


# What workloads and the job do.


def put_row(world: World) -> None:
    nexus = world.nexus
    if nexus.check_floor():
        kek_id = world.store.facts.kek_id
        row = Row(kek_id, nexus.keks[kek_id], world.next_serial())
        world.store.write_rows({**world.store.state.rows, world.next_serial(): row}, counts=True)
        promises.check_state(world)


def delete_row(world: World) -> None:
    rows = world.store.state.rows
    if len(rows) > 8 and world.nexus.check_floor():
        gone = world.chance.choice(sorted(rows))
        if rows[gone].is_abandoned:
            return
        world.store.write_rows({number: row for number, row in rows.items() if number != gone}, counts=True)


def rot_row(world: World) -> None:
    rows = [number for number, row in world.store.state.rows.items() if not row.is_rotten]
    if rows:
        world.edit_row(world.chance.choice(rows), is_rotten=True)


def do_job(world: World) -> None:
    nexus = world.nexus
    if not nexus.check_floor():
        return
    facts, backup = world.store.facts, Backup(world.store.state.backup, 0)
    match world.core.next_job_step(facts, world.store.count_rows(), backup):
        case job.Rewrap(kek_id, renews_deks):
            _rewrap(world, kek_id, renews_deks=renews_deks)
        case job.Verify(kek_id):
            nexus.save(world.core.mark_verified(facts, kek_id, world.store.count_rows().of(kek_id), at=world.at))
        case job.Retire(kek_id):
            _retire(world, kek_id, backup)
        case job.Waiting(kek_id, job.WaitsFor.QUARANTINE):
            _abandon(world, kek_id)


def _rewrap(world: World, kek_id: int, *, renews_deks: bool) -> None:
    current = world.store.facts.kek_id
    rows = dict(world.store.state.rows)
    chosen = [number for number, row in rows.items() if row.kek_id == kek_id and not row.is_quarantined][:BATCH]
    for number in chosen:
        row = rows[number]
        if row.is_rotten:
            rows[number] = replace(row, is_quarantined=True)
            continue
        assert world.nexus.keks[kek_id] == row.kek, "the job opens a row under another KEK"
        dek = world.next_serial() if renews_deks else row.dek
        rows[number] = replace(row, kek_id=current, kek=world.nexus.keks[current], dek=dek)
        world.count("rewrap")
    world.store.write_rows(rows, counts=False)
    promises.check_state(world)


def _abandon(world: World, kek_id: int) -> None:
    rows = dict(world.store.state.rows)
    given_up = [
        number for number, row in rows.items() if row.kek_id == kek_id and row.is_quarantined and not row.is_abandoned
    ]
    change = world.core.count_abandoned(world.store.facts, kek_id, len(given_up))
    if isinstance(change, Refused):
        return
    for number in given_up:
        rows[number] = replace(rows[number], is_abandoned=True)
    world.commit(change, rows=rows)
    world.nexus.look()


def _retire(world: World, kek_id: int, backup: Backup) -> None:
    facts = world.store.facts
    tainted = facts.keyring.keks[str(kek_id)].state is records.KekState.TAINTED
    change = world.core.retire(facts, kek_id, world.store.count_rows().of(kek_id), backup, at=world.at)
    if world.nexus.save(change):
        world.nexus.keks.pop(kek_id)
        world.count("retire", "tainted" if tainted else "old")


# What happens to keepers, messages and processes.


def tick(world: World) -> None:
    world.now += world.chance.choice((0.1, 0.5, 2.0, 30.0))


def deliver(world: World) -> None:
    for _ in range(min(4, len(world.messages))):
        if world.messages:
            world.deliver(world.chance.randrange(len(world.messages)))


def double_message(world: World) -> None:
    if world.messages:
        world.messages.append(world.chance.choice(world.messages))


def lose_message(world: World) -> None:
    if world.messages:
        world.messages.pop(world.chance.randrange(len(world.messages)))


def drive(world: World) -> None:
    world.nexus.drive()


def progress(world: World) -> None:
    """Let the driver get as far as it can while all messages arrive."""
    for _ in range(world.chance.randrange(2, 10)):
        action = world.nexus.drive()
        world.settle_messages()
        if action is None or isinstance(action, actions.Wait):
            world.now += 1.0
            break


def poll(world: World) -> None:
    if world.nexus.mode is Mode.SEALED:
        world.nexus.empty()
    elif world.nexus.check_floor():
        world.nexus.poll()
        world.settle_messages()
        renew_refused_set(world)


def restart_keeper(world: World) -> None:
    if not world.is_put_back:
        world.restart_keeper(world.chance.choice(KEEPERS))


def turn_keeper(world: World) -> None:
    keeper = world.keepers[world.chance.choice(KEEPERS)]
    if not world.is_put_back or not keeper.is_up:
        keeper.is_up = not keeper.is_up


def turn_on_keepers(world: World) -> None:
    for keeper in world.keepers.values():
        keeper.is_up = True


STEPS: dict[Callable[[World], None], int] = {
    deliver: 200,
    progress: 120,
    drive: 100,
    poll: 60,
    put_row: 40,
    delete_row: 10,
    do_job: 120,
    begin: 40,
    tick: 60,
    verify_backup: 20,
    World.recover: 40,
    double_message: 20,
    lose_message: 20,
    turn_on_keepers: 30,
    turn_keeper: 8,
    restart_keeper: 8,
    abort: 8,
    starve: 8,
    waive: 4,
    rot_row: 4,
    World.damage_row: 4,
    World.take_snapshot: 4,
    World.crash_nexus: 10,
    World.pause_nexus: 16,
    World.wake_zombie: 12,
    seal: 3,
    unseal: 12,
    World.put_back_store: 6,
    accept: 10,
}


def run_world(core: Core, chance: random.Random, steps: int, counts: Counter[str], memory: ProtectedMemory) -> None:
    """Let *steps* things happen, then mend everything and demand that it comes to rest."""
    world = World(core, chance, counts, memory)
    for step in chance.choices(list(STEPS), weights=list(STEPS.values()), k=steps):
        step(world)
    mend(world)


def mend(world: World) -> None:
    """Mend everything, and run until nothing is left to do."""
    for keeper in world.keepers.values():
        if isinstance(keeper, Liar):
            keeper.is_lying = False
            if not world.is_put_back:
                world.restart_keeper(keeper.name)
    world.wake_zombie()
    turn_on_keepers(world)
    for _ in range(ROUNDS):
        world.now += 1.0
        for step in (
            World.recover,
            accept,
            _unseal_if_needed,
            poll,
            drive,
            World.settle_messages,
            verify_backup,
            do_job,
        ):
            step(world)
        if _is_at_rest(world):
            break
    promises.check_rest(world)
    for keeper in world.keepers.values():
        keeper.slots.wipe()


def _unseal_if_needed(world: World) -> None:
    if world.nexus.mode in (Mode.SEALED, Mode.RECOVERING):
        unseal(world)


def _is_at_rest(world: World) -> bool:
    facts = world.store.facts
    if world.nexus.mode is not Mode.READY or facts.operation is not None or len(facts.sets) > 1 or world.messages:
        return False
    if any(set(keeper.held) != promises.find_wanted(facts, name) for name, keeper in world.keepers.items()):
        return False
    return world.core.next_job_step(facts, world.store.count_rows(), Backup(world.store.state.backup, 0)) is None
