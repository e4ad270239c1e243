"""What the driver and the gate bring along: orders, measurements, and what was made of key material. All of it is data.

Times are microseconds since 1970, sizes are bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nexus.keys.operation.record import Depth, Driver, Step, Waiver, WaiverKind
from nexus.keys.records import CanaryRecord, EscrowRecord, ShardSetRecord


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody, or the schedule, asks for."""

    depth: Depth
    keepers: tuple[str, ...]  # names of the members of the new set
    threshold: int  # of the new set
    actor: str
    reason: str = ""
    is_scheduled: bool = False
    is_forced: bool = False  # inside the minimum age
    suspected_at: int = 0  # emergency: since when somebody else may have had the root key
    waivers: tuple[Waiver, ...] = ()

    @property
    def without_backup(self) -> str:
        """Why no backup is waited for; empty: one is."""
        return next((waiver.reason for waiver in self.waivers if waiver.kind is WaiverKind.BACKUP), "")


@dataclass(frozen=True, slots=True)
class Backup:
    """The newest backup that was verified."""

    generation: int
    verified_at: int


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was measured before an operation begins."""

    now: int
    reachable: frozenset[str]  # keepers that answer and accept this nexus
    too_old: frozenset[str]  # keepers whose program cannot take part
    is_escrow_proved: bool  # the recovery key is the chain's, and its shares were proved
    backup: Backup | None
    backup_max_age: int
    minimum_age: int
    is_in_window: bool
    disk_free: int
    disk_wanted: int
    memory_free: int  # protected
    memory_wanted: int


@dataclass(frozen=True, slots=True)
class NewKey:
    """What was made of a new root key. Nothing of it is secret."""

    kcv: bytes  # 32 bytes
    wraps: Mapping[int, bytes]  # every KEK of the current keyring, and the new one, wrapped under the new root key
    escrow: EscrowRecord
    canary: CanaryRecord  # under the new KEK
    link: bytes  # record of the chain: unsigned for `prepare`, signed for `replace_at_once`


@dataclass(frozen=True, slots=True)
class Staged:
    """A new set, and a new root key with it unless the root key stays."""

    shard_set: ShardSetRecord
    kek_id: int  # the new KEK; without a new key the current one
    key: NewKey | None


@dataclass(frozen=True, slots=True)
class Holding:
    """A keeper gave back its shard of the new set, and it matched its commitment."""

    boot_id: bytes  # 16 bytes
    age: float  # seconds since then


@dataclass(frozen=True, slots=True)
class Proof:
    """The recovery way brought the new set's key back from keepers, and it proved itself on the rows of the flip."""

    operation_id: bytes
    set_number: int
    step: Step  # at which the shards were fetched
    driver: Driver  # that did it
