"""What every server tells of itself in its metrics: its build, its process, its SVID, its memory and its load."""

from collections.abc import Iterator, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from common.server.build import load_revision
from common.server.edge import GrpcServer
from shardhold.identity import IdentitySource, IdentityUnavailableError


class SvidExpiry:
    """Until when the SVID of this server is valid; remembered when it has expired or its source is gone."""

    def __init__(self, identity: IdentitySource) -> None:
        self._identity = identity
        self._last: datetime | None = None

    def find(self) -> datetime | None:
        """Return the moment, aware; None: there was no SVID yet."""
        try:
            self._last = self._identity.current().expires_at
        except IdentityUnavailableError:
            pass
        return self._last


class Vitals(Collector):
    """Read at each scrape."""

    def __init__(
        self,
        servers: Mapping[str, GrpcServer],
        *,
        version: str,
        svid_expiry: SvidExpiry,
        memory_protection: int,
    ) -> None:
        """*servers* are the gRPC servers, by the names that their ports have in metrics."""
        self._servers = servers
        self._version = version
        self._revision = load_revision()
        self._svid_expiry = svid_expiry
        self._memory_protection = memory_protection

    def register(self, registry: CollectorRegistry) -> None:
        """Show them, and what the kernel tells of the process."""
        ProcessCollector(registry=registry)
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily(
            "shardhold_build_info",
            "always 1: the version, and the commit that it was built from, empty where that is not known",
            labels=["version", "revision"],
        )
        build.add_metric([self._version, self._revision], 1.0)
        yield build
        yield GaugeMetricFamily(
            "shardhold_memory_protection_level", "3: memfd_secret, 2: locked, 1: plain", value=self._memory_protection
        )
        expiry = GaugeMetricFamily(
            "shardhold_svid_expiry_timestamp_seconds",
            "when the SVID of this server expires, in seconds since 1970; in the past: it has expired",
        )
        if (moment := self._svid_expiry.find()) is not None:
            expiry.add_metric([], moment.timestamp())
        yield expiry
        yield from self._collect_load()

    def _collect_load(self) -> Iterator[Metric]:
        texts = {
            "connections": "connections at the port, those in their handshake included",
            "calls_running": "calls that a worker of the port runs",
            "calls_waiting": "calls that wait for a worker of the port",
        }
        for name, text in texts.items():
            family = GaugeMetricFamily(f"shardhold_{name}", text, labels=["port"])
            for port, server in self._servers.items():
                family.add_metric([port], getattr(server, name))
            yield family
