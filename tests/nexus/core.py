"""The core of a nexus without its wire: every part real, keepers played; time stands still, and waits are real."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from common.clock import Clock, SystemClock
from common.errors import AuditUnavailableError
from common.forms.audit.entry import Entry, decode_entry
from common.forms.audit.line import EntryLine, Line
from common.forms.audit.segment import list_segments
from common.keys.protected import ProtectedMemory
from common.server.edge import Method
from nexus.access.audit.journal import Journal
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Caller
from nexus.access.roles import Roles
from nexus.admin.backup.backups import BackupSetup
from nexus.keepers.pool import KeeperPool
from nexus.keys.genesis_pin import GenesisPin
from nexus.keys.operation.schedule import Terms
from nexus.keys.operation.windows import DAY
from nexus.lifecycle.states import State, initial_state
from nexus.server.audit import AuditHandlers
from nexus.server.auth import Authenticator
from nexus.server.backup import BackupHandlers
from nexus.server.cluster import ClusterHandlers
from nexus.server.core import build_core
from nexus.server.methods import list_methods
from nexus.server.policies import PolicyHandlers
from nexus.server.root import RootHandlers
from nexus.server.secrets import SecretHandlers
from nexus.server.signer import SvidSigner
from nexus.server.unseal import RecoveryHandlers
from nexus.store.protocol import Store
from tests.kit.authority import NOW, Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.manual_clock import ManualClock
from tests.nexus.access.audit.descriptor import replaced
from tests.nexus.cluster import NEXUS_NAME, SUPERUSERS, TRUST_DOMAIN, FoundedCluster, members
from tests.nexus.played_keepers import PlayedKeeper, make_absent

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


class RealWaits:
    """A clock with the times of another one, whose waits pass by themselves."""

    def __init__(self, times: Clock) -> None:
        self._times = times

    def now(self) -> datetime:
        return self._times.now()

    def monotonic(self) -> float:
        return self._times.monotonic()

    def wait(self, event: threading.Event, seconds: float) -> bool:
        return SystemClock().wait(event, seconds)


ANY_CLUSTER = GenesisPin()
# Nothing begins by itself, and the clusters of these tests, which are older than a year, are not due.
TERMS = Terms(is_enabled=False, interval=1000 * DAY)
AUTHORITY = Authority(at=NOW)
IDENTITY = FixedIdentity(AUTHORITY.forge("p256", f"spiffe://{TRUST_DOMAIN}/shardhold/nexus/n1"))


class NexusCore:
    """One nexus on one store, around the core that `nexus.server.process` builds too."""

    def __init__(
        self,
        folder: Path,
        store: Store,
        memory: ProtectedMemory,
        keepers: Sequence[PlayedKeeper],
        *,
        name: str = NEXUS_NAME,
        backup: BackupSetup | None = None,
    ) -> None:
        self.backup = backup
        self.folder = folder
        self.store = store
        self.memory = memory
        self.clock = ManualClock()
        self.keepers = {keeper.name: keeper for keeper in keepers}
        self.states: list[State] = []
        self.failures: list[str] = []
        self.disk_free = 1 << 40  # bytes
        with store.read() as reader:
            meta = reader.load_meta()
        self.audit = AuditLog.open(folder, nexus=name, timeline=meta.timeline, clock=self.clock)
        self.pool = KeeperPool(
            members(len(keepers)),
            lambda member: self.keepers.get(member.name) or make_absent(member.name),
            clock=SystemClock(),
            memory=memory,
        )
        self.bind(initial_state(meta))

    def bind(self, state: State, pin: GenesisPin = ANY_CLUSTER) -> None:
        """Build what hangs on the lifecycle, which begins in *state*; *pin* names the one cluster to serve."""
        core = build_core(
            self.store,
            self.audit,
            Journal(self.store, self.audit, self.clock),
            self.pool,
            state=state,
            memory=self.memory,
            signer=SvidSigner(IDENTITY),
            first_policy=SUPERUSERS,
            clock=RealWaits(self.clock),
            on_state=self.states.append,
            give_up=self.failures.append,
            roles=ROLES,
            find_disk_free=lambda: self.disk_free,
            pin=pin,
            terms=TERMS,
            backup=self.backup,
        )
        self.lifecycle = core.lifecycle
        self.warden = core.warden
        self.exporter = core.exporter
        self.gate = core.gate
        self.vault = core.vault
        self.policies = core.policies
        self.initialisation = core.initialisation
        self.unseal = core.unseal
        self.seal = core.seal
        self.status = core.status
        self.audit_access = core.audit
        self.operations = core.operations
        self.driver = core.driver
        self.job = core.job
        self.quarantine = core.quarantine
        self.schedule = core.schedule
        self.rotation_calls = core.rotation_calls
        self.impact = core.impact
        self.backups = core.backups
        self.backup_schedule = core.backup_schedule

    def list_methods(self) -> list[Method]:
        """Return the table of RPCs over real handlers."""
        authenticator = Authenticator(ROLES)
        return list_methods(
            SecretHandlers(self.vault, authenticator),
            PolicyHandlers(self.policies, authenticator),
            ClusterHandlers(self.status, self.initialisation, self.seal, authenticator),
            RecoveryHandlers(self.unseal, authenticator),
            AuditHandlers(self.audit_access, authenticator),
            RootHandlers(self.operations, self.quarantine, self.rotation_calls, self.impact, authenticator),
            BackupHandlers(self.backups, self.backup_schedule, authenticator),
        )

    def list_entries(self) -> list[Entry]:
        """List what calls left in the audit files: reads, denials, changes that failed."""
        return [entry for entry in self.list_all_entries() if entry.actor]

    def list_all_entries(self) -> list[Entry]:
        """List what the audit files hold, also of what the nexus did by itself."""
        decoder = msgspec.json.Decoder(Line)
        lines = [
            decoder.decode(encoded)
            for segment in list_segments(self.folder)
            for encoded in (self.folder / segment.name).read_bytes().splitlines()
        ]
        return [line.entry for line in lines if isinstance(line, EntryLine)]

    def list_change_entries(self) -> list[tuple[int, Entry]]:
        """List what the store holds, by revision: the entries that are part of a change."""
        with self.store.read() as reader:
            rows = reader.load_audit("n1", limit=10_000)
        return [(row.revision, decode_entry(row.entry)) for row in rows]

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
        self.job.stop()
        self.backups.stop()
        self.driver.stop()
        self.warden.stop()
        self.unseal.close()
        self.pool.stop()
        self.exporter.stop()
        self.audit.close()
        self.lifecycle.wipe()


def make_ready(core: NexusCore, cluster: FoundedCluster) -> None:
    """Let *core* serve *cluster*, as after a recovery."""
    core.warden.begin_serving(cluster.prove())
    core.states.clear()
