"""A nexus process: builds every part once, runs it, and takes it down again.

Order of a start: store, audit, keepers, then the gRPC port, so that a wrong set-up is known before anybody can call.
Order of an end: refuse calls, drain, stop the threads, flush the audit, wipe. Whatever hangs with a disk is given up in
time.
"""

import functools
import os
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry

from common.clock import Clock, JumpWatch
from common.errors import CorruptRowError, OutcomeUnknownError
from common.keys.protected import ProtectedMemory
from common.server.edge import GrpcServer
from common.server.http import HttpServer
from common.server.identity import list_obstacles
from common.server.termination import Termination
from common.server.vitals import SvidExpiry, Vitals
from common.time_limit import finish_within
from nexus import __version__
from nexus.access.audit.journal import Journal
from nexus.access.audit.log import AuditLog
from nexus.access.roles import Roles
from nexus.admin.backup.backups import BackupSetup
from nexus.admin.backup.directory import BackupDirectory
from nexus.admin.backup.retention import Retention
from nexus.admin.disks import Disks
from nexus.admin.vitals import ProcessSigns
from nexus.config import KeeperOptions, NexusConfig
from nexus.keepers.plan import list_leaving, list_members
from nexus.keepers.pool import KeeperPool
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.manifest import find_current_set, list_sets
from nexus.keys.shard_set import Member
from nexus.lifecycle.states import State, initial_state
from nexus.policy.rules import superuser_policy
from nexus.server.audit import AuditHandlers
from nexus.server.auth import Authenticator
from nexus.server.backup import BackupHandlers
from nexus.server.backup_metrics import BackupCollector
from nexus.server.cluster import ClusterHandlers
from nexus.server.core import build_core
from nexus.server.keeper_link import GrpcKeeperLink
from nexus.server.methods import list_methods
from nexus.server.metrics import DiskCollector, KeeperCollector, RotationCollector, StateCollector
from nexus.server.policies import PolicyHandlers
from nexus.server.root import RootHandlers
from nexus.server.secrets import SecretHandlers
from nexus.server.signer import SvidSigner
from nexus.server.unseal import RecoveryHandlers
from nexus.store.protocol import CopiedStore, Meta, Phase, Store
from nexus.store.sqlite.store import SqliteStore
from shardhold.identity import IdentitySource

_CLOSE_S = 10.0  # for the threads to end, and the last entries to reach the disks
_ADMIN_WORKERS = 4  # threads that run the calls at the port for people
_TICK_S = 1.0  # how often what is too old is looked for

log = structlog.get_logger("nexus")


class Nexus:
    """Built by `__main__`; `run` returns the exit code."""

    def __init__(self, config: NexusConfig, *, memory: ProtectedMemory, identity: IdentitySource, clock: Clock) -> None:
        """Open the store and the audit, and build the rest on them.

        Raises:
            StoreUnavailableError: The store cannot be opened, or another nexus holds it.
            AuditUnavailableError: The audit cannot be opened.
        """
        self._config = config
        self._memory = memory
        self._identity = identity
        self._clock = clock
        self._failure = ""  # why the process ends by itself
        self._jumps = JumpWatch(clock)
        self._store = SqliteStore.open(Path(config.storage.path))
        meta = self._load_meta()
        self._audit = AuditLog.open(
            Path(config.audit.directory), nexus=config.name, timeline=meta.timeline, clock=clock
        )
        self._journal = Journal(self._store, self._audit, clock)
        self._pool = KeeperPool(
            _find_members(self._store, meta, config),
            lambda member: GrpcKeeperLink(
                name=member.name, address=member.address, spiffe_id=member.spiffe_id, identity=identity, clock=clock
            ),
            clock=clock,
            memory=memory,
            note=self._journal.note_keeper,
            locate=functools.partial(_locate, addresses=_find_addresses(config)),
        )
        self._svid_expiry = SvidExpiry(identity)
        self._core = build_core(
            self._store,
            self._audit,
            self._journal,
            self._pool,
            state=initial_state(meta),
            memory=memory,
            signer=SvidSigner(identity),
            first_policy=superuser_policy(config.identity.trust_domain, config.roles.pattern),
            clock=clock,
            on_state=lambda state: self._set_serving(state is State.READY),
            give_up=self._fail,
            roles=Roles(config.identity.trust_domain, pattern=config.roles.pattern),
            find_disk_free=lambda: shutil.disk_usage(Path(config.storage.path).parent).free,
            pin=GenesisPin(bytes.fromhex(config.genesis)),
            terms=config.rotation.terms,
            backup=_find_backup_setup(config, self._store),
            backup_interval=config.backup.interval_hours * 3600,
            keeping=config.secrets.keeping,
            signs=ProcessSigns(
                find_svid_expiry=self._svid_expiry.find,
                count_calls=lambda: self._servers[0].meter.count(),
            ),
        )
        self._disks = Disks(_list_folders(config), clock)
        registry = CollectorRegistry()
        self._servers = self._build_servers(identity, registry)
        self._register_metrics(registry)
        self._http = HttpServer(
            config.listen.http,
            is_live=lambda: True,
            readiness=self._list_obstacles,
            alarms=self._core.list_alarms,
            registry=registry,
            count=self._servers[0].meter.count_probe,
        )

    def run(self, termination: Termination) -> int:
        """Serve until *termination*, then drain and wipe; return the exit code."""
        threading.excepthook = self._fail_by_thread
        try:
            self._http.start()
            ports = [server.start() for server in self._servers]
            self._pool.start()
            self._core.exporter.start()
            self._disks.start()
            log.info(
                "listening",
                port=ports[0],
                admin_port=ports[1] if len(ports) > 1 else None,
                state=self._core.lifecycle.state.value,
                memory_protection=self._memory.level.value,
            )
            if self._core.lifecycle.state is State.INITIALISING:
                log.warning("an earlier init was not completed: destroy its recovery shares and begin again")
            self._core.warden.start()
            self._core.driver.start()
            self._core.job.start()
            self._core.backup_schedule.start()
            while not termination.wait(_TICK_S):
                self._core.unseal.expire()
                self._tell_jump()
        except BaseException as exc:
            log.critical("cannot go on", exc_info=exc)
            self._failure = self._failure or "the main thread failed"
            raise
        finally:
            self._take_down()
        return self._exit_code

    @property
    def _exit_code(self) -> int:
        return 1 if self._failure else 0

    def _build_servers(self, identity: IdentitySource, registry: CollectorRegistry) -> list[GrpcServer]:
        """Build the server for all callers, and one for people alone if it has an address."""
        config = self._config
        core = self._core
        authenticator = Authenticator(Roles(config.identity.trust_domain, pattern=config.roles.pattern))
        methods = list_methods(
            SecretHandlers(core.vault, authenticator),
            PolicyHandlers(core.policies, authenticator),
            ClusterHandlers(core.status, core.initialisation, core.seal, authenticator),
            RecoveryHandlers(core.unseal, authenticator),
            AuditHandlers(core.audit, authenticator),
            RootHandlers(core.operations, core.quarantine, core.rotation_calls, core.impact, authenticator),
            BackupHandlers(core.backups, core.backup_schedule, authenticator),
        )
        build = functools.partial(
            GrpcServer,
            methods,
            identity=identity,
            trust_domain=config.identity.trust_domain,
            max_connection_age_s=config.listen.max_connection_age_s,
            max_calls_per_caller=config.listen.max_calls_per_caller,
        )
        server = build(address=config.listen.address, workers=config.listen.workers, registry=registry)
        if not config.listen.admin_address:
            return [server]
        for_people = build(
            address=config.listen.admin_address,
            option="listen.admin_address",
            workers=_ADMIN_WORKERS,
            meter=server.meter,
            admit=authenticator.admit_person,
        )
        return [server, for_people]

    def _register_metrics(self, registry: CollectorRegistry) -> None:
        core, clock = self._core, self._clock
        registry.register(StateCollector(core.lifecycle, core.warden, core.unseal, core.recovery_time))
        registry.register(KeeperCollector(core.lifecycle, self._pool, core.warden, clock))
        registry.register(DiskCollector(core.lifecycle, self._audit, core.exporter, self._disks))
        registry.register(BackupCollector(core.backup_schedule, clock))
        registry.register(RotationCollector(core.lifecycle, self._store, core.driver, core.schedule, core.job, clock))
        Vitals(
            dict(zip(("main", "admin"), self._servers, strict=False)),
            version=__version__,
            svid_expiry=self._svid_expiry,
            memory_protection=self._memory.level,
        ).register(registry)

    def _set_serving(self, serving: bool) -> None:
        for server in self._servers:
            server.set_serving(serving)

    def _stop_servers(self) -> None:
        """Drain all ports at the same time."""
        threads = [
            threading.Thread(target=server.stop, args=[self._config.shutdown.drain_s], name="drain")
            for server in self._servers[1:]
        ]
        for thread in threads:
            thread.start()
        self._servers[0].stop(self._config.shutdown.drain_s)
        for thread in threads:
            thread.join()

    def _load_meta(self) -> Meta:
        with self._store.read() as reader:
            return reader.load_meta()

    def _list_obstacles(self) -> list[str]:
        return self._core.warden.list_obstacles() + self._audit.list_obstacles() + list_obstacles(self._identity)

    def _tell_jump(self) -> None:
        if jump := self._jumps.find_jump():
            log.warning("clock was set: certificates may look expired, or not valid yet", jumped_s=round(jump, 1))
            self._journal.note("clock.jump", "", f"{jump:+.1f} s")

    def _fail(self, reason: str) -> None:
        log.critical("cannot go on", reason=reason)
        self._failure = self._failure or reason
        os.kill(os.getpid(), signal.SIGTERM)

    def _fail_by_thread(self, hook: threading.ExceptHookArgs) -> None:
        """A thread that died of a mistake of ours would leave its work undone for good; a new start does not."""
        log.critical("thread died", thread=hook.thread and hook.thread.name, exc_info=hook.exc_value)
        self._fail("a thread died")

    def _take_down(self) -> None:
        threading.excepthook = threading.__excepthook__
        self._set_serving(False)
        self._stop_servers()
        self._http.stop()
        try:
            finish_within(self._clock, _CLOSE_S, self._close, name="closing")
        except OutcomeUnknownError:
            self._fail("store or audit does not answer: ending without closing them")
        finally:
            self._core.lifecycle.wipe()
            self._memory.wipe()
        log.info("stopped", exit_code=self._exit_code)

    def _close(self) -> None:
        """Stop whatever may wait for a disk, and close the files."""
        self._disks.stop()
        self._core.backups.stop()  # first: a job or a driver may be waiting for it
        self._core.backup_schedule.stop()
        self._core.job.stop()
        self._core.driver.stop()
        self._core.warden.stop()
        self._core.unseal.close()
        self._pool.stop()
        if self._failure:
            self._journal.note("nexus.give-up", "", self._failure)
        self._core.exporter.stop()
        self._audit.close()
        self._store.close()


def _find_members(store: Store, meta: Meta, config: NexusConfig) -> list[Member]:
    """The sets say who the keepers are, and who may hold a shard yet; configuration says so before."""
    configured = _list_configured(config)
    if meta.phase is not Phase.INITIALISED:
        return configured
    try:
        with store.read() as reader:
            rows = reader.load_controls()
        members = list_members(find_current_set(meta.cluster_id, rows))
        members += list_leaving(list_sets(meta.cluster_id, rows))
    except CorruptRowError as exc:
        log.critical("no shard set says who the keepers are", why=str(exc))
        return configured  # so that status can say it
    newest: dict[tuple[str, str], Member] = {}
    for member in members:
        newest.setdefault(member.identity, member)
    return list(newest.values())


def _find_backup_setup(config: NexusConfig, store: CopiedStore) -> BackupSetup | None:
    if not config.backup.directory:
        return None
    directory = BackupDirectory(Path(config.backup.directory), nexus=config.name)
    retention = Retention(
        config.backup.keep_last, config.backup.keep_daily, config.backup.keep_weekly, config.backup.keep_minimum
    )
    return BackupSetup(store, directory, config.backup.recipients, retention)


def _list_folders(config: NexusConfig) -> dict[str, Path]:
    """Return the folders that a nexus writes to, by what metrics call them."""
    folders = {"data": Path(config.storage.path).parent, "audit": Path(config.audit.directory)}
    if config.backup.directory:
        folders["backup"] = Path(config.backup.directory)
    return folders


def _find_addresses(config: NexusConfig) -> dict[tuple[str, str], str]:
    """Say where configuration has keepers, by name and SPIFFE ID."""
    return {member.identity: member.address for member in _list_configured(config)}


def _locate(member: Member, *, addresses: Mapping[tuple[str, str], str]) -> Member:
    """Move a keeper of a set to where configuration has it: nothing else of it can be overridden."""
    return replace(member, address=addresses.get(member.identity, member.address))


def _list_configured(config: NexusConfig) -> list[Member]:
    return [_to_member(options, config.identity.trust_domain) for options in config.keepers]


def _to_member(options: KeeperOptions, trust_domain: str) -> Member:
    spiffe_id = options.spiffe_id or f"spiffe://{trust_domain}/shardhold/keeper/{options.name}"
    return Member(options.name, spiffe_id, options.address)
