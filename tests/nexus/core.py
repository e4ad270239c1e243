"""The core of a nexus without its wire: every part real, keepers played; the clock of gate and audit stands still."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from common.clock import ManualClock, SystemClock
from common.errors import AuditUnavailableError
from common.forms.audit.entry import Entry, decode_entry
from common.forms.audit.line import EntryLine, Line
from common.forms.audit.segment import list_segments
from common.keys.protected import ProtectedMemory
from common.server.edge import Method
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Caller, Gate
from nexus.access.roles import Roles
from nexus.admin.initialise import Initialisation
from nexus.admin.policies import Policies
from nexus.admin.seal import Seal
from nexus.admin.status import Status
from nexus.admin.unseal import Unseal
from nexus.keepers.pool import KeeperPool
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State, initial_state
from nexus.lifecycle.warden import Warden
from nexus.server.auth import Authenticator
from nexus.server.cluster import ClusterHandlers
from nexus.server.methods import list_methods
from nexus.server.policies import PolicyHandlers
from nexus.server.secrets import SecretHandlers
from nexus.server.signer import SvidSigner
from nexus.server.unseal import RecoveryHandlers
from nexus.store.protocol import Store
from nexus.vault.secrets import Vault
from shardhold.identity import Svid
from tests.common.authority import Authority
from tests.nexus.access.audit.descriptor import replaced
from tests.nexus.cluster import SUPERUSERS, TRUST_DOMAIN, FoundedCluster, members
from tests.nexus.played_keepers import PlayedKeeper

ROLES = Roles(TRUST_DOMAIN)


def identify(path: str) -> Caller:
    """Make the caller with this path of a SPIFFE ID."""
    spiffe_id = f"spiffe://{TRUST_DOMAIN}/{path}"
    return Caller(spiffe_id, ROLES.role_of(spiffe_id), "ipv4:127.0.0.1:4711")


SUPERUSER = identify("shardhold/pilot/role/superuser/alice")
OPERATOR = identify("shardhold/pilot/role/operator/bob")
RECOVER = identify("shardhold/pilot/role/recover/carol")
AUDITOR = identify("shardhold/pilot/role/auditor/dan")
NEXUS = identify("shardhold/nexus/other")
KEEPER = identify("shardhold/keeper/keeper-1")
APP = identify("team/app")
STRANGER = identify("elsewhere/app")


class SettableClock(ManualClock):
    """A manual clock whose wall time can be set besides, as NTP does."""

    offset = timedelta()

    def now(self) -> datetime:
        return super().now() + self.offset


class FixedIdentity:
    """The SVID of the nexus, which never changes. Implements the SDK's IdentitySource."""

    def __init__(self) -> None:
        self.authority = Authority()
        self.svid = self.authority.issue("p256", f"spiffe://{TRUST_DOMAIN}/shardhold/nexus/n1")

    def current(self) -> Svid:
        return self.svid

    def subscribe(self, callback: Callable[[], None]) -> None:
        pass

    def close(self) -> None:
        pass


IDENTITY = FixedIdentity()


class NexusCore:
    """One nexus on one store, built as `nexus.server.process` builds it."""

    def __init__(self, folder: Path, store: Store, memory: ProtectedMemory, keepers: Sequence[PlayedKeeper]) -> None:
        self.folder = folder
        self.store = store
        self.memory = memory
        self.clock = SettableClock()
        self.keepers = {keeper.name: keeper for keeper in keepers}
        self.states: list[State] = []
        self.failures: list[str] = []
        with store.read() as reader:
            meta = reader.load_meta()
        self.audit = AuditLog.open(folder, nexus="n1", timeline=meta.timeline, clock=self.clock)
        self.exporter = Exporter(store, self.audit, clock=self.clock, give_up=self.failures.append)
        self.pool = KeeperPool(
            members(len(keepers)), lambda member: self.keepers[member.name], clock=SystemClock(), memory=memory
        )
        self.bind(initial_state(meta))

    def bind(self, state: State) -> None:
        """Build what hangs on the lifecycle, which begins in *state*."""
        self.lifecycle = Lifecycle(state, on_change=self.states.append, on_failure=self.failures.append)
        self.warden = Warden(
            store=self.store, lifecycle=self.lifecycle, pool=self.pool, memory=self.memory, clock=SystemClock()
        )
        self.gate = Gate(self.lifecycle, self.audit, self.exporter, self.clock)
        self.vault = Vault(self.store, self.gate, self.clock)
        self.policies = Policies(self.store, self.gate)
        self.initialisation = Initialisation(
            store=self.store,
            gate=self.gate,
            lifecycle=self.lifecycle,
            warden=self.warden,
            pool=self.pool,
            memory=self.memory,
            first_policy=SUPERUSERS,
        )
        self.unseal = Unseal(
            store=self.store,
            gate=self.gate,
            warden=self.warden,
            memory=self.memory,
            clock=self.clock,
            signer=SvidSigner(IDENTITY),
        )
        self.seal = Seal(self.gate, self.warden)
        self.status = Status(
            store=self.store,
            gate=self.gate,
            lifecycle=self.lifecycle,
            pool=self.pool,
            initialisation=self.initialisation,
            warden=self.warden,
            unseal=self.unseal,
            memory_protection=self.memory.level,
        )

    def list_methods(self) -> list[Method]:
        """Return the table of RPCs over real handlers."""
        authenticator = Authenticator(ROLES)
        return list_methods(
            SecretHandlers(self.vault, authenticator),
            PolicyHandlers(self.policies, authenticator),
            ClusterHandlers(self.status, self.initialisation, self.seal, authenticator),
            RecoveryHandlers(self.unseal, authenticator),
        )

    def list_entries(self) -> list[Entry]:
        """List what the audit files hold: reads, denials, changes that failed."""
        decoder = msgspec.json.Decoder(Line)
        lines = [
            decoder.decode(encoded)
            for segment in list_segments(self.folder)
            for encoded in (self.folder / segment.name).read_bytes().splitlines()
        ]
        return [line.entry for line in lines if isinstance(line, EntryLine)]

    def list_change_entries(self) -> list[tuple[int, Entry]]:
        """List what the store holds, by revision: the entries that are part of a change."""
        return [(revision, decode_entry(entry)) for revision, entry in self.store.load_audit(limit=10_000)]

    @contextmanager
    def audit_failing(self) -> Iterator[None]:
        """Let the disk of the audit be full for one write: it refuses all but what may use its reserve."""
        segment = (self.folder / list_segments(self.folder)[-1].name).resolve()
        with replaced(segment, by="/dev/full"), pytest.raises(AuditUnavailableError):
            self.audit.append(Entry(at=0, actor="", action="test"), reserve=True)
        yield
        assert self.audit.failing

    def close(self) -> None:
        """Take it down as a process does. Again: nothing happens."""
        for keeper in self.keepers.values():
            keeper.go.set()
        self.warden.stop()
        self.unseal.close()
        self.pool.stop()
        self.exporter.stop()
        self.audit.close()
        self.lifecycle.wipe()


def make_ready(core: NexusCore, cluster: FoundedCluster) -> None:
    """Let *core* serve *cluster*, as after a recovery."""
    core.warden.found(cluster.prove())
    core.states.clear()
