"""A keeper as the nexus core sees it: a Protocol, which `nexus.server.keeper_link` implements over mTLS."""

from dataclasses import dataclass
from typing import Protocol

from common.forms.delivery import UNBOUND_FORMAT, SetLabel
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import SignedMark
from common.keys.protected import ProtectedBuffer

CALL_TIMEOUT = 2.0  # seconds for one call to a keeper


@dataclass(frozen=True, slots=True)
class ReportedSet:
    """A set that a keeper says it holds."""

    label: SetLabel
    x: int


@dataclass(frozen=True, slots=True)
class KeeperReport:
    """What a keeper says of itself."""

    boot_id: bytes  # 16 bytes, new at each start
    cluster_id: bytes  # empty: not pinned yet
    genesis: bytes  # empty: not pinned yet
    sets: tuple[ReportedSet, ...]
    version: str
    memory_protection: int
    epoch: StoreEpoch = NO_EPOCH  # the highest that it has seen
    chain_seq: int = 0  # number of the last record of the chain that it verified
    chain_digest: bytes = b""  # of that record; empty: it holds no mark, or is of an older program
    put_format: int = UNBOUND_FORMAT  # the highest of PutShard that it takes


class KeeperLink(Protocol):
    """One keeper, over mTLS. Thread-safe; every call takes its own time limit in seconds.

    Every method raises `KeeperUnreachableError` when there is no answer in time, `DeniedError` when the keeper does not
    accept this nexus, and `WrongStateError` when it refuses what was asked (the message is the keeper's). It refuses a
    call whose *epoch*, which is the store's, is lower than one that it has seen.
    """

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    def fetch_report(self, *, timeout: float) -> KeeperReport: ...

    def fetch_shard(self, cluster_id: bytes, set_id: bytes, *, into: ProtectedBuffer, timeout: float) -> bytes:
        """Fetch the keeper's shard, 33 bytes, into protected memory, and return the keeper's boot id.

        The shard is what the keeper says it is: the caller compares it with its commitment.

        Raises:
            NotFoundError: The keeper holds no such set.
            BadShardError: What came does not open or is no shard.
        """
        ...

    def put_shard(
        self,
        label: SetLabel,
        shard: ProtectedBuffer,
        *,
        commitment: bytes,
        current_set_id: bytes,
        epoch: StoreEpoch,
        put_format: int,
        timeout: float,
    ) -> bytes:
        """Give the keeper its shard, sealed to the exact SPIFFE ID of this link, and return the keeper's boot id.

        *current_set_id* is that of the store, and empty for a keeper that is no member of its current set. *put_format*
        is what the keeper's report says.

        Raises:
            KeeperTooOldError: *current_set_id* is empty, which this keeper does not know; nothing was sealed or sent.
            SetNotNewerError: The keeper has held a newer set.
            StatementError: The keeper's statement does not verify; nothing was sealed or sent.
        """
        ...

    def drop_set(self, cluster_id: bytes, set_id: bytes, *, epoch: StoreEpoch, timeout: float) -> bytes:
        """Make the keeper forget a set, and return the keeper's boot id."""
        ...

    def put_mark(self, mark: SignedMark, *, epoch: StoreEpoch, timeout: float, known: bytes = b"") -> SignedMark | None:
        """Give the keeper a rollback mark; it keeps the newest, and returns its own when that is newer.

        *known* is the `chain_digest` of its report: what it has verified of the chain is not sent again.

        Raises:
            InvalidArgumentError: It does not verify for the keeper.
        """
        ...

    def fetch_mark(self, cluster_id: bytes, *, timeout: float) -> SignedMark | None:
        """Fetch the rollback mark that the keeper remembers, as it is; None when there is none."""
        ...

    def close(self) -> None: ...
