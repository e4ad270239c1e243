"""A ready nexus with a real store, whose backups go to a real directory."""

from contextlib import AbstractContextManager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from common.forms.bech32 import encode_identity, encode_recipient
from common.keys.protected import ProtectedMemory
from nexus.admin.backup.backups import BackupSetup
from nexus.admin.backup.directory import BackupDirectory
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.records import Key
from nexus.keys.ruled_change import commit_rule, load_facts
from nexus.store.protocol import CopiedStore, StoreCopy
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.cluster import FoundedCluster
from tests.nexus.core import NexusCore, make_ready

OWNER = bytes(range(32))  # identity of who gets the backups
RECIPIENT = encode_recipient(X25519PrivateKey.from_private_bytes(OWNER).public_key().public_bytes_raw())
IDENTITY_FILE = f"# made by age-keygen\n{encode_identity(OWNER)}\n".encode()
LIMIT_S = 60.0


class World:
    """A ready nexus, its store, and where its backups go."""

    def __init__(self, folder: Path, store: SqliteStore, memory: ProtectedMemory, cluster: FoundedCluster) -> None:
        self.folder = folder / "backups"
        self.folder.mkdir()
        self.directory = BackupDirectory(self.folder, nexus="n1")
        self.store = store
        self.database = store._path
        self.cluster = cluster
        self.copied: CopiedStore = store
        self._memory = memory
        self.core = self.start(cluster)

    def start(self, cluster: FoundedCluster) -> NexusCore:
        """Start a nexus that serves *cluster* from the store."""
        setup = BackupSetup(self, self.directory, [RECIPIENT])
        core = NexusCore(self.database.parent, self.store, self._memory, cluster.keepers(), backup=setup)
        make_ready(core, cluster)
        return core

    def copy(self) -> AbstractContextManager[StoreCopy]:
        """Copy the store, or what a test has put in its place."""
        return self.copied.copy()

    def use(self, directory: BackupDirectory) -> None:
        """Let backups go to another kind of directory."""
        self.core.backups._setup = BackupSetup(self, directory, [RECIPIENT])

    def change(self, put: dict[Key, bytes], *, delete: Key | None = None) -> None:
        """Change control rows."""
        with self.core.lifecycle.borrow() as serving:
            gone = frozenset({delete} if delete else ())
            rule = Change(self.facts.current, put, gone, raises_epoch=False)
            commit_rule(self.store, serving, lambda facts, revision: rule, lambda writer, key: None)

    @property
    def facts(self) -> Facts:
        """What the control rows say."""
        with self.core.lifecycle.borrow() as serving, self.store.read() as reader:
            return load_facts(reader, serving.root_key)

    def list_names(self) -> list[str]:
        """List everything in the folder."""
        return sorted(path.name for path in self.folder.iterdir())
