"""A keeper of the model: the real slots and the real fence, with a mark that is a number; and one that lies."""

import random
from dataclasses import dataclass, field
from typing import NamedTuple

from common.errors import NotFoundError, ShardholdError
from common.forms.delivery import SetLabel
from common.forms.epoch import StoreEpoch
from common.keys.protected import ProtectedMemory
from keeper.fence import EpochFence
from keeper.slots import ShardSlots
from nexus.keys.operation.record import Numbers


class ModelMark(NamedTuple):
    """How far a store had come; ordered as real marks are."""

    timeline: int
    revision: int
    epoch: int
    given_out: tuple[int, int, int]

    @property
    def numbers(self) -> Numbers:
        return Numbers(*self.given_out)


NO_MARK = ModelMark(0, 0, 0, (0, 0, 0))


class KeeperRefusedError(Exception):
    """The keeper refuses a call; the message says why."""


@dataclass
class ModelKeeper:
    """What a keeper does with each call, in one boot after the other."""

    name: str
    memory: ProtectedMemory
    is_up: bool = True
    boot: int = 0
    slots: ShardSlots = field(init=False)
    fence: EpochFence = field(init=False)
    mark: ModelMark = NO_MARK
    gave: dict[bytes, float] = field(default_factory=dict)  # when it truly gave its shard of a set, last
    dropped: list[bytes] = field(default_factory=list)  # sets that a call wiped, until somebody looks

    is_liar = False

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.slots, self.fence, self.mark = ShardSlots(self.memory), EpochFence(), NO_MARK
        self.gave = {}

    def restart(self) -> None:
        """Forget everything."""
        self.slots.wipe()
        self.boot += 1
        self._begin()

    @property
    def boot_id(self) -> bytes:
        return f"{self.name}-{self.boot}".encode()

    @property
    def held(self) -> dict[bytes, SetLabel]:
        """What it truly holds."""
        return {held.label.set_id: held.label for held in self.slots.list_held()}

    def report(self) -> dict[bytes, SetLabel]:
        return self.held

    def put(self, label: SetLabel, shard: bytes, commitment: bytes, current_set_id: bytes, epoch: StoreEpoch) -> None:
        with self._refusing(epoch):
            self.slots.put(label, memoryview(shard), x=shard[-1], commitment=commitment, current_set_id=current_set_id)

    def fetch(self, set_id: bytes, now: float) -> bytes | None:
        """Return its shard, None: it has none of this set."""
        with self.memory.allocate(33) as buffer:
            try:
                self.slots.copy_shard(b"c" * 16, set_id, into=buffer.view)
            except NotFoundError:
                return None
            self.gave[set_id] = now
            return bytes(buffer.view)

    def drop(self, set_id: bytes, epoch: StoreEpoch) -> None:
        with self._refusing(epoch):
            if self.slots.drop(b"c" * 16, set_id):
                self.dropped.append(set_id)

    def put_mark(self, mark: ModelMark, epoch: StoreEpoch) -> ModelMark:
        with self._refusing(epoch):
            if self.slots.pin is None:
                raise KeeperRefusedError("nothing is pinned")
            self.mark = max(self.mark, mark)
        return self.mark

    def _refusing(self, epoch: StoreEpoch) -> "_Passing":
        return _Passing(self.fence, epoch)


class _Passing:
    """The fence, with our error in place of the keeper's."""

    def __init__(self, fence: EpochFence, epoch: StoreEpoch) -> None:
        self._passing = fence.passing(epoch)

    def __enter__(self) -> None:
        try:
            self._passing.__enter__()
        except ShardholdError as exc:
            raise KeeperRefusedError(str(exc)) from exc

    def __exit__(self, *raised: object) -> None:
        try:
            self._passing.__exit__(*raised)  # type: ignore[arg-type]
        except ShardholdError as exc:
            raise KeeperRefusedError(str(exc)) from exc


class Liar(ModelKeeper):
    """Holds what it is given or not, gives it back or not, and keeps what it was told to drop."""

    is_liar = True
    is_lying = True  # until it is mended
    chance: random.Random

    def _lies(self, probability: float) -> bool:
        return self.is_lying and self.chance.random() < probability

    def report(self) -> dict[bytes, SetLabel]:
        return {} if self._lies(0.2) else super().report()

    def put(self, label: SetLabel, shard: bytes, commitment: bytes, current_set_id: bytes, epoch: StoreEpoch) -> None:
        if not self._lies(0.2):
            super().put(label, shard, commitment, current_set_id, epoch)

    def fetch(self, set_id: bytes, now: float) -> bytes | None:
        if self._lies(0.3):
            return self.chance.choice((None, bytes(33)))
        return super().fetch(set_id, now)

    def drop(self, set_id: bytes, epoch: StoreEpoch) -> None:
        if not self._lies(0.5):
            super().drop(set_id, epoch)

    def put_mark(self, mark: ModelMark, epoch: StoreEpoch) -> ModelMark:
        return mark if self._lies(0.5) else super().put_mark(mark, epoch)
