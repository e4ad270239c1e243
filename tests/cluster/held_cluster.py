"""A cluster under an authority that the test holds, so that it can certify whomever it wants to send, in any shape.

The identity provider is not a process of the cluster but a part of the test's; servers and clients cannot tell.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

from pilot.dev.cluster import IDENTITY, DevCluster, server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import TRUST_DOMAIN, Identity, list_people, server_identity
from pilot.dev.provider import IdentityProvider
from tests.kit.authority import Authority
from tests.kit.cluster import Cluster
from tests.kit.credentials import Credentials, write_svid


class HeldDevCluster(DevCluster):
    """A development cluster whose identities come from *ca*, by a provider in this process."""

    def __init__(self, like: DevCluster, ca: Authority) -> None:
        """Take over a cluster that was never started."""
        super().__init__(like.directory, spawn=like.spawn, port_range=like.port_range)
        self._ca = ca
        self._provider: IdentityProvider | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All processes; the provider is none."""
        return tuple(name for name in super().names if name != IDENTITY)

    def is_alive(self, name: str) -> bool:
        return self._provider is not None if name == IDENTITY else super().is_alive(name)

    def start(self, names: Iterable[str] | None = None) -> None:
        """Start servers as `DevCluster` does, once there is somebody to identify them."""
        if self._provider is None:
            self.state.sockets = str(self.directory.make_sockets())
            lifetime = timedelta(seconds=self.state.plan.lifetime_s)
            self._provider = IdentityProvider(Path(self.state.sockets), self._ca, lifetime=lifetime)
            for identity in (*map(server_identity, self.state.plan.servers), *list_people()):
                self.add_identity(identity)
        super().start(names)

    def stop(self, names: Iterable[str] | None = None) -> list[str]:
        """End servers; without *names* also the provider."""
        killed = super().stop(names)
        if names is None and self._provider is not None:
            self._provider.stop()
            self._provider = None
        return killed

    def add_identity(self, identity: Identity) -> Path:
        assert self._provider is not None, "the cluster was not started"
        return self._provider.add(identity.path, identity.dns or None, name=identity.socket_name)


class HeldCluster(Cluster):
    """A cluster as others are, whose authority is `ca`."""

    def __init__(self, root: Path, plan: Plan | None = None) -> None:
        super().__init__(root, plan)
        self.ca = Authority(TRUST_DOMAIN)
        self.use(HeldDevCluster(self.dev, self.ca))

    def port(self, name: str) -> int:
        """Return the gRPC port of a server."""
        return self.dev.state.ports[name].grpc

    def start_as(self, name: str, credentials: Credentials) -> None:
        """Start the true program in the place of a server that does not run, with other credentials than its own."""
        folder = write_svid(self.directory.root / f"impostor-{name}", credentials)
        prefix = f"SHARDHOLD_{'NEXUS' if name == 'nexus' else 'KEEPER'}__IDENTITY__"
        environ = [f"{prefix}SOURCE=files", f"{prefix}SVID_DIR={folder}"]
        self.processes.replace(name, ["env", *environ, *server_command(self.directory, name)])
        self.wait(f"{name} runs", lambda: self.dev.is_ready(name) or bool(self.fetch(name, "/livez")))
