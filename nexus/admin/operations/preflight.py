"""What is measured before an operation begins: keepers that answer, and room for what it makes."""

from collections.abc import Callable, Sequence

from common.clock import Clock, to_micros
from common.keys import shamir
from common.keys.protected import ProtectedMemory
from nexus.keepers.pool import KeeperPool
from nexus.keys.operation.evidence import Backup, Preflight
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth
from nexus.keys.operation.schedule import Terms
from nexus.keys.operation.windows import is_open
from nexus.keys.shard_set import Member
from nexus.keys.verified_backup import find_backup

_PROBE_S = 3.0  # for every keeper to answer
_DISK_WANTED = 4 << 20  # bytes: rows, their WAL and audit entries, with room to spare
_DISK_WANTED_FOR_ROWS = 64 << 20  # bytes: every row is written anew, in place; that is for the WAL
_BUFFER_SIZE = 64  # bytes of protected memory that a shard takes at most
_SPARE_BUFFERS = 16  # root key, derived keys and one-shot keys that exist beside the shards for a moment


class Preflights:
    """Thread-safe. *find_disk_free* gives the bytes that the disk of the store has left."""

    def __init__(
        self, pool: KeeperPool, memory: ProtectedMemory, clock: Clock, terms: Terms, find_disk_free: Callable[[], int]
    ) -> None:
        self._pool = pool
        self._memory = memory
        self._clock = clock
        self._terms = terms
        self._find_disk_free = find_disk_free

    def measure(
        self, members: Sequence[Member], depth: Depth, *, is_escrow_proved: bool, backup: Backup | None
    ) -> Preflight:
        """Ask *members*, which may be new, how they are, and measure the rest; takes at most some seconds."""
        reports = self._pool.probe(members, seconds=_PROBE_S)
        now = to_micros(self._clock.now())
        return Preflight(
            now=now,
            reachable=frozenset(name for name, status in reports.items() if status.reachable and not status.fault),
            too_old=frozenset(name for name, status in reports.items() if status.is_too_old),
            is_escrow_proved=is_escrow_proved,
            backup=backup,
            backup_max_age=self._terms.backup_max_age,
            minimum_age=self._terms.minimum_age,
            is_in_window=is_open(self._terms.windows, now),
            disk_free=self._find_disk_free(),
            disk_wanted=_DISK_WANTED_FOR_ROWS if depth.renews_key else _DISK_WANTED,
            memory_free=self._memory.free,
            memory_wanted=(len(members) + _SPARE_BUFFERS) * max(_BUFFER_SIZE, shamir.SHARD_SIZE),
        )

    def is_backup_old(self, facts: Facts) -> bool:
        """Whether a rotation would be refused for want of a backup."""
        backup, now = find_backup(facts), to_micros(self._clock.now())
        if backup is None or backup.generation != facts.generation:
            return True
        return now - backup.verified_at > self._terms.backup_max_age
