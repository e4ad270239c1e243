"""The world of the model: keepers, a store, nexuses, messages, and what may happen to each of them.

Whatever happens is one step. Steps that bring an operation further take several actions at once, or chance alone would
hardly ever end one; disasters are rare.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from common.errors import WrongStateError
from common.keys.protected import Level, ProtectedMemory
from nexus.keys import records
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Driver, Numbers
from tests.nexus.keys.operation.made import NAMES, first_bodies, make_shard, token
from tests.nexus.keys.operation.model import promises
from tests.nexus.keys.operation.model.core import Core
from tests.nexus.keys.operation.model.keeper import NO_MARK, KeeperRefusedError, Liar, ModelKeeper, ModelMark
from tests.nexus.keys.operation.model.nexus import Mode, ModelNexus, open_root
from tests.nexus.keys.operation.model.store import ModelStore, State

LIARS = ("k2", "k5")
KEEPERS = (*NAMES, "k6")  # of which a reshare chooses the members


@dataclass
class Message:
    """A call to a keeper that is under way."""

    sender: ModelNexus
    keeper: str
    call: Callable[[ModelKeeper], object]
    hear: Callable[..., None]


class World:
    """Everything there is, in one thread."""

    def __init__(self, core: Core, chance: random.Random, counts: Counter[str], memory: ProtectedMemory) -> None:
        self.core = core
        self.chance = chance
        self.counts = counts
        self.now = 0.0  # seconds
        self.serial = 0
        self.set_keys: dict[bytes, bytes] = {}  # token of the root key by set
        self.given_out: dict[tuple[str, int], bytes] = {}
        self.makers: dict[bytes, Driver] = {}  # of operations
        self.died_holding: dict[tuple[str, bytes], float] = {}
        self.refused_as_not_newer: dict[bytes, set[str]] = {}
        self.messages: list[Message] = []
        self.keepers: dict[str, ModelKeeper] = {}
        for name in KEEPERS:
            keeper = Liar(name, memory) if name in LIARS else ModelKeeper(name, memory)
            if isinstance(keeper, Liar):
                keeper.chance = chance
            self.keepers[name] = keeper
        threshold, root = chance.choice((2, 3)), self.make_token("root")
        self.store = ModelStore(
            first_bodies(root, self.make_token("kek"), threshold=threshold, nonce=self.next_serial())
        )
        self.set_keys[self.store.facts.current_set.set_id] = root
        self.snapshot: State | None = None
        self.is_put_back = False  # and nobody has accepted it yet
        self.zombie: Callable[[], None] | None = None
        self.nexus = self.start_nexus()
        self.nexus.install(root)
        self.settle_messages()

    # What everybody needs.

    @property
    def at(self) -> int:
        """Microseconds since 1970."""
        return 1_000_000_000 + int(self.now * 1_000_000)

    def next_serial(self) -> int:
        self.serial += 1
        return self.serial

    def make_token(self, kind: str) -> bytes:
        return token(kind, self.next_serial())

    def count(self, *what: object) -> None:
        self.counts[" ".join(map(str, what))] += 1

    def open_current(self) -> dict[int, bytes]:
        """Open the keyring of the current generation with its true root key."""
        return open_root(self.store.facts, self.set_keys[self.store.facts.current_set.set_id])

    def start_nexus(self) -> ModelNexus:
        return ModelNexus(self, token("boot", self.next_serial())[:16])

    def commit(self, change: Change, **options: object) -> None:
        """Commit a change, and look at what it has left."""
        before = self.store.state, self.store.facts
        self.store.commit(change, **options)  # type: ignore[arg-type]
        self._count_end(before[1])
        promises.check_commit(self, before)

    def _count_end(self, before: Facts) -> None:
        old, new = before.operation, self.store.facts.operation
        if old is not None and (new is None or new.id != old.id):
            self.count("ended at", old.step)
        elif old is not None and new is not None and old.driver != new.driver:
            self.count("taken over at", old.step)

    def make_mark(self) -> ModelMark:
        meta = self.store.state.meta
        given_out = (meta.last_generation, meta.last_set_number, meta.last_kek_id)
        return ModelMark(meta.timeline, meta.revision, meta.epoch, given_out)

    def is_newer(self, mark: ModelMark) -> bool:
        """Whether a mark says that the store was put back."""
        return mark[:2] > self.make_mark()[:2]

    def find_newest_mark(self) -> ModelMark:
        return max((keeper.mark for keeper in self.keepers.values() if keeper.is_up), default=NO_MARK)

    # Messages.

    def send(
        self, sender: ModelNexus, keeper: str, call: Callable[[ModelKeeper], object], hear: Callable[..., None]
    ) -> None:
        self.messages.append(Message(sender, keeper, call, hear))

    def deliver(self, index: int) -> None:
        """Let one message arrive, and its answer."""
        message = self.messages.pop(index)
        keeper = self.keepers[message.keeper]
        if not keeper.is_up:
            return
        try:
            answer = message.call(keeper)
        except (KeeperRefusedError, WrongStateError):
            self.count("keeper refused")
            answer = None
        else:
            if message.sender.mode is not Mode.GONE:
                message.hear(answer)
        promises.check_drops(self)

    def settle_messages(self, limit: int = 400) -> None:
        """Deliver all messages, and those that follow from them, in the order of chance."""
        for _ in range(limit):
            if not self.messages:
                return
            self.deliver(self.chance.randrange(len(self.messages)))
        self.messages.clear()

    # The way back.

    def recover(self) -> None:
        """Let the nexus fetch the current set from all keepers that are up, and prove the key."""
        nexus = self.nexus
        if nexus.mode is not Mode.RECOVERING:
            return
        current = self.store.facts.current_set
        good = 0
        for member in current.members:
            keeper = self.keepers[member.name]
            if keeper.is_up and keeper.fetch(current.set_id, self.now) == make_shard(current.set_id, member.x):
                good += 1
        if good >= current.threshold:
            self.count("recovered")
            self.admit(self.set_keys[current.set_id])

    def admit(self, root: bytes) -> None:
        """Serve with a key that keepers brought back, unless a mark is newer than the store."""
        nexus = self.nexus
        if self.is_newer(self.find_newest_mark()):
            nexus.root, nexus.mode = root, Mode.BLOCKED
            self.count("blocked")
            return
        self.is_put_back = False
        nexus.forget()
        nexus.install(root)

    def find_escrowed(self, facts: Facts) -> bytes:
        """What custodians bring back."""
        escrow = records.decode(records.EscrowRecord, facts.bodies[records.ESCROW, str(facts.generation)])
        return escrow.copies[0].sealed

    # Disasters.

    def restart_keeper(self, name: str) -> None:
        keeper = self.keepers[name]
        for set_id, asked in keeper.gave.items():
            self.died_holding[name, set_id] = asked
        keeper.restart()

    def crash_nexus(self) -> None:
        """End the process; its messages may still arrive."""
        self.nexus.mode = Mode.GONE
        self.nexus.forget()
        self.nexus = self.start_nexus()

    def pause_nexus(self) -> None:
        """Stop the process between a decision and its act; another one starts, and the act comes late."""
        paused = self.nexus
        if not paused.check_floor() or self.store.facts.operation is None:
            return
        action, facts = paused.decide()
        self.nexus = self.start_nexus()

        def wake() -> None:
            paused.perform(action, facts)
            paused.mode = Mode.GONE
            self.count("woken")

        self.zombie = wake

    def wake_zombie(self) -> None:
        if self.zombie is not None:
            wake, self.zombie = self.zombie, None
            wake()

    def take_snapshot(self) -> None:
        self.snapshot = self.store.state

    def put_back_store(self) -> None:
        """Put an older store back, while a keeper remembers how far it had come."""
        mark, numbers = self.find_newest_mark(), self.make_mark().given_out
        if self.snapshot is None or self.is_put_back or mark.given_out != numbers:
            return
        if mark[:2] <= (self.snapshot.meta.timeline, self.snapshot.meta.revision):
            return
        self.count("put back")
        self.zombie = None
        self.messages.clear()
        self.nexus.mode = Mode.GONE
        self.store.put_back(self.snapshot)
        self.snapshot, self.is_put_back = None, True
        self.nexus = self.start_nexus()

    def damage_row(self) -> None:
        """Damage a row of an operation, or one that it has replaced; never one that recovery needs."""
        facts = self.store.facts
        current = {str(facts.generation), str(facts.kek_id), str(facts.current_set.set_number)}
        kinds = {records.SHARD_SET, records.KEYRING, records.ESCROW, records.CANARY}
        keys = [key for key in facts.bodies if key == records.OPERATION or (key[0] in kinds and key[1] not in current)]
        if keys:
            self.store.damage(self.chance.choice(sorted(keys)))
            self.count("damaged")

    def edit_row(self, number: int, **changes: object) -> None:
        rows = dict(self.store.state.rows)
        rows[number] = replace(rows[number], **changes)  # type: ignore[arg-type]
        self.store.write_rows(rows, counts=False)
        promises.check_state(self)

    def seen_numbers(self) -> Numbers:
        return self.find_newest_mark().numbers


def make_memory() -> ProtectedMemory:
    """Room for the slots of all keepers; nothing in it is secret."""
    return ProtectedMemory(size=1 << 16, highest=Level.LOCKED)
