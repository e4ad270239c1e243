"""What is to follow the current shard set, and in a rotation the current root key, while it waits for its flip."""

from dataclasses import dataclass

from nexus.keys.keyring import Keyring
from nexus.keys.root_key import RootKey
from nexus.keys.shard_set import ShardSet


@dataclass(frozen=True, slots=True)
class StagedKey:
    """A root key that is not current yet, and the KEK that comes with it. Owns both."""

    root_key: RootKey
    keyring: Keyring  # its current KEK is the new one; it may have others, which nothing is sealed under any more

    def release(self) -> None:
        """Wipe both."""
        self.keyring.release()
        self.root_key.release()


@dataclass(frozen=True, slots=True)
class Successor:
    """A set that is not current yet, with its points. Owns them, and the key if there is a new one."""

    shard_set: ShardSet
    key: StagedKey | None = None  # None: the root key stays

    @property
    def root_key(self) -> RootKey | None:
        """The new root key, None: it stays."""
        return None if self.key is None else self.key.root_key

    def release(self) -> None:
        """Wipe everything."""
        self.shard_set.release()
        if self.key is not None:
            self.key.release()
