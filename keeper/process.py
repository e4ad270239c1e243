"""A keeper from start to end: memory, server, probes, and the order in which they start and end."""

import os

import structlog
from prometheus_client import CollectorRegistry, Gauge

from common.clock import SystemClock
from common.keys.protected import ProtectedMemory
from common.keys.statement import StatementDesk
from common.server.edge import GrpcServer
from common.server.health import HOLDS_SHARD
from common.server.http import HttpServer
from common.server.identity import IdentitySource, list_obstacles
from common.server.termination import Termination
from common.server.vitals import SvidExpiry, Vitals
from keeper import __version__
from keeper.config import KeeperConfig
from keeper.service import KeeperService
from keeper.slots import ShardSlots

_TICK_S = 30.0  # how often unused one-shot keys are expired

log = structlog.get_logger("keeper")


class Keeper:
    """One keeper process."""

    def __init__(self, config: KeeperConfig, memory: ProtectedMemory, identity: IdentitySource) -> None:
        self._config = config
        self._memory = memory
        self._identity = identity
        self._slots = ShardSlots(self._memory)
        self._desk = StatementDesk(SystemClock())
        self._boot_id = os.urandom(16)
        registry = CollectorRegistry()
        service = KeeperService(
            self._slots,
            desk=self._desk,
            memory=self._memory,
            identity=identity,
            boot_id=self._boot_id,
            nexuses=config.nexuses,
        )
        self._server = GrpcServer(
            service.list_methods(),
            address=config.listen.address,
            identity=identity,
            trust_domain=config.identity.trust_domain,
            workers=config.listen.workers,
            max_connection_age_s=config.listen.max_connection_age_s,
            registry=registry,
            conditions={HOLDS_SHARD: lambda: self._is_serving and bool(self._slots.list_held())},
        )
        self._register_metrics(registry)
        self._is_serving = False
        self._http = HttpServer(
            config.listen.http,
            is_live=lambda: True,
            readiness=self._list_obstacles,
            registry=registry,
            count=self._server.meter.count_probe,
        )

    def run(self, termination: Termination) -> None:
        """Serve until told to stop; then refuse new calls, let those in flight end, and wipe.

        Raises:
            ConfigError: An address cannot be bound.
        """
        try:
            self._http.start()
            port = self._server.start()
            self._set_serving(True)
            log.info(
                "keeper serves",
                name=self._config.name,
                version=__version__,
                port=port,
                http_port=self._http.port,
                boot_id=self._boot_id.hex(),
                memory_protection=self._memory.level.value,
            )
            while not termination.wait(_TICK_S):
                self._desk.expire()
        finally:
            self._set_serving(False)
            self._server.stop(self._config.shutdown.drain_s)
            self._slots.wipe()
            self._memory.wipe()
            self._http.stop()
        log.info("keeper ended", name=self._config.name)

    def _set_serving(self, serving: bool) -> None:
        self._is_serving = serving
        self._server.set_serving(serving)

    def _list_obstacles(self) -> list[str]:
        return list_obstacles(self._identity) if self._is_serving else ["not serving"]

    def _register_metrics(self, registry: CollectorRegistry) -> None:
        sets = Gauge("shardhold_keeper_sets", "shard sets held, 0 to 2", registry=registry)
        sets.set_function(lambda: len(self._slots.list_held()))
        Vitals(
            {"main": self._server},
            version=__version__,
            svid_expiry=SvidExpiry(self._identity),
            memory_protection=self._memory.level,
        ).register(registry)
