"""The core of a nexus: what stands between its wire and its store, audit and keepers."""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import WrongStateError
from common.forms.audit.entry import Entry
from common.keys.protected import ProtectedMemory
from nexus.access.audit.continuity import Continuity
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.journal import Journal
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Gate
from nexus.access.roles import Roles
from nexus.admin.audit import Audit
from nexus.admin.backup.backups import Backups, BackupSetup
from nexus.admin.backup.schedule import BackupSchedule
from nexus.admin.initialise import Initialisation
from nexus.admin.operations.driver import OperationDriver
from nexus.admin.operations.impact import Impact
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.admin.operations.operations import Operations
from nexus.admin.operations.preflight import Preflights
from nexus.admin.operations.quarantine import Quarantine
from nexus.admin.operations.rotation_calls import RotationCalls
from nexus.admin.operations.schedule import Schedule
from nexus.admin.operations.starter import Starter
from nexus.admin.policies import Policies
from nexus.admin.seal import Seal
from nexus.admin.statement_signer import StatementSigner
from nexus.admin.status import Status
from nexus.admin.unseal import Unseal
from nexus.admin.vitals import ProcessSigns, VitalSigns
from nexus.keepers.pool import KeeperPool
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Driver
from nexus.keys.operation.schedule import Terms
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.recovery_time import RecoveryTime
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.policy.keeping import Keeping
from nexus.policy.rules import Policy
from nexus.store.protocol import Store, Writer
from nexus.store.requests import RequestRetention
from nexus.store.scrubs import LateScrubs
from nexus.vault.secrets import Vault

_ANY = GenesisPin()
_NO_SIGNS = ProcessSigns()
_USUAL = Terms()
_KEEPING = Keeping()


@dataclass(frozen=True, slots=True)
class Core:
    """What the handlers call, and what a process starts and ends."""

    lifecycle: Lifecycle
    warden: Warden
    exporter: Exporter
    gate: Gate
    vault: Vault
    policies: Policies
    initialisation: Initialisation
    unseal: Unseal
    seal: Seal
    status: Status
    audit: Audit
    operations: Operations
    driver: OperationDriver
    job: KeyringJob
    quarantine: Quarantine
    schedule: Schedule
    rotation_calls: RotationCalls
    impact: Impact
    backups: Backups
    backup_schedule: BackupSchedule
    recovery_time: RecoveryTime
    list_alarms: Callable[[], list[str]]  # what somebody has to see to although the nexus serves


def build_core(
    store: Store,
    audit: AuditLog,
    journal: Journal,
    pool: KeeperPool,
    *,
    state: State,
    memory: ProtectedMemory,
    signer: StatementSigner,
    first_policy: Policy,
    clock: Clock,
    on_state: Callable[[State], None],
    give_up: Callable[[str], None],
    roles: Roles,
    find_disk_free: Callable[[], int],
    pin: GenesisPin = _ANY,
    terms: Terms = _USUAL,
    backup: BackupSetup | None = None,
    backup_interval: int = 0,
    keeping: Keeping = _KEEPING,
    signs: ProcessSigns = _NO_SIGNS,
) -> Core:
    """Build every part on *store*, *audit* and *pool*, whose owner closes them. The exporter is not started yet.

    The lifecycle begins in *state*; *on_state* hears of each change after the audit follows it. *give_up* ends the
    process. *roles* are those of the trust domain. *find_disk_free* says how many bytes the disk of the store has left.
    *pin* names the one cluster that may be served, *terms* say what begins by itself, *backup* how backups are made,
    None: there are none, and *backup_interval* after how many seconds; 0: never by itself. *keeping* says how many
    versions of a secret are kept, *signs* are what a status tells of the process.
    """

    def follow(now: State) -> None:
        if now is not State.READY:
            driver.forget_shards()
            backups.end_running()
        recovery_time.follow(now)
        journal.follow(now, lifecycle)
        on_state(now)

    def look_beside(facts: Facts | None) -> None:
        backups.look(facts)
        if facts is None:
            schedule.forget()
        else:
            schedule.look(facts)

    retention, scrubs = RequestRetention(store, clock), LateScrubs(store, clock)

    def discard_old() -> None:
        retention.look()
        scrubs.look()

    def write_backup_entry(writer: Writer, key: RootKey) -> None:
        entry = Entry(at=to_micros(clock.now()), actor="", action="backup.make")
        append_entry(writer, key, audit.nexus, entry.encode())

    def list_alarms() -> list[str]:
        beside = schedule.list_alarms() + job.list_alarms() + backup_schedule.list_alarms()
        return warden.list_alarms() + beside

    def wake() -> None:
        driver.wake()
        job.wake()

    def follow_key() -> None:
        with lifecycle.borrow() as serving:
            journal.follow_key(serving)

    recovery_time = RecoveryTime(clock, state)
    lifecycle = Lifecycle(state, on_change=follow, on_failure=give_up)
    continuity = Continuity(store, audit)
    warden = Warden(
        store=store,
        lifecycle=lifecycle,
        pool=pool,
        memory=memory,
        clock=clock,
        pin=pin,
        inspect_store=store.find_fault,
        audit_files=continuity,
    )

    @contextmanager
    def borrow_key() -> Iterator[RootKey]:
        with lifecycle.borrow() as serving:
            if serving.manifest_format == 1:  # rows without a MAC are about to be adopted
                raise WrongStateError("the manifest is of the first format still")
            yield serving.root_key

    exporter = Exporter(
        store,
        audit,
        borrow_key=borrow_key,
        clock=audit.clock,
        give_up=give_up,
        beside=discard_old,
    )
    gate = Gate(lifecycle, audit, exporter, clock)
    initialisation = Initialisation(
        store=store,
        gate=gate,
        lifecycle=lifecycle,
        warden=warden,
        pool=pool,
        memory=memory,
        first_policy=first_policy,
        pin=pin,
        audit_files=continuity,
    )
    unseal = Unseal(store=store, gate=gate, warden=warden, memory=memory, clock=clock, signer=signer, pin=pin)
    driver = OperationDriver(
        store=store,
        lifecycle=lifecycle,
        warden=warden,
        pool=pool,
        memory=memory,
        clock=clock,
        driver=Driver(audit.nexus, os.urandom(16)),
        follow_key=follow_key,
        beside=look_beside,
    )
    backups = Backups(
        setup=backup,
        store=store,
        gate=gate,
        lifecycle=lifecycle,
        warden=warden,
        memory=memory,
        clock=clock,
        nexus=audit.nexus,
    )
    backup_schedule = BackupSchedule(
        backups=backups,
        lifecycle=lifecycle,
        clock=clock,
        interval=backup_interval,
        write_entry=write_backup_entry,
        note=journal.note,
        draw=lambda longest: longest * int.from_bytes(os.urandom(4)) / (1 << 32),
    )
    make_backup = functools.partial(backups.make_verified, write_backup_entry) if backups.is_configured else None
    starter = Starter(
        store=store,
        warden=warden,
        driver=driver,
        preflights=Preflights(pool, memory, clock, terms, find_disk_free),
        memory=memory,
        clock=clock,
        make_backup=make_backup,
    )
    schedule = Schedule(terms=terms, clock=clock, begin=starter.begin_scheduled, note=journal.note)
    job = KeyringJob(
        store=store,
        lifecycle=lifecycle,
        warden=warden,
        clock=clock,
        nexus=audit.nexus,
        make_backup=make_backup,
        find_rate=lambda: terms.rows_per_second,
    )
    status = Status(
        store=store,
        gate=gate,
        lifecycle=lifecycle,
        pool=pool,
        initialisation=initialisation,
        warden=warden,
        unseal=unseal,
        memory_protection=memory.level,
        audit=audit,
        list_alarms=list_alarms,
        find_wait=lambda: driver.waits_for,
        vitals=VitalSigns(
            signs, audit=audit, exporter=exporter, schedule=schedule, job=job, backups=backups, clock=clock
        ),
    )
    operations = Operations(
        store=store,
        gate=gate,
        warden=warden,
        pool=pool,
        driver=driver,
        starter=starter,
        job=job,
        schedule=schedule,
        clock=clock,
        is_keeper_id=roles.may_hold_shards,
    )
    return Core(
        lifecycle,
        warden,
        exporter,
        gate,
        Vault(store, gate, clock, keeping),
        Policies(store, gate, roles),
        initialisation,
        unseal,
        Seal(gate, warden),
        status,
        Audit(
            gate=gate,
            warden=warden,
            audit=audit,
            continuity=continuity,
            clock=clock,
        ),
        operations,
        driver,
        job,
        Quarantine(store=store, gate=gate, warden=warden, wake=job.wake),
        schedule,
        RotationCalls(store=store, gate=gate, warden=warden, clock=clock, on_change=wake),
        Impact(store, gate),
        backups,
        backup_schedule,
        recovery_time,
        list_alarms,
    )
