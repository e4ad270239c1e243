"""What a transition changes: control rows, and numbers of the meta row."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nexus.keys.operation.record import Numbers
from nexus.keys.records import Key
from nexus.store.protocol import Meta


@dataclass(frozen=True, slots=True)
class Change:
    """Rows to put and to delete in one change of the store, under the manifest of generation *current.generation*."""

    current: Numbers  # what is current afterwards
    put: Mapping[Key, bytes] = field(default_factory=dict)
    delete: frozenset[Key] = frozenset()
    given_out: Numbers = Numbers()  # noqa: RUF009 — frozen. The highest numbers that the change uses; 0: none
    raises_epoch: bool = True  # False: the change that it is a part of raises it

    @property
    def is_empty(self) -> bool:
        """Whether no row changes."""
        return not self.put and not self.delete

    def apply(self, bodies: Mapping[Key, bytes]) -> dict[Key, bytes]:
        """Return *bodies*, of all control rows but the manifest, as the change leaves them."""
        return {key: body for key, body in bodies.items() if key not in self.delete} | dict(self.put)

    def edit(self, meta: Meta) -> Meta:
        """Return the meta row as the change leaves it, for `manifest.change`, which counts the control revision."""
        return replace(
            meta,
            epoch=meta.epoch + self.raises_epoch,
            generation=self.current.generation,
            kek_id=self.current.kek_id,
            last_generation=max(meta.last_generation, self.given_out.generation),
            last_set_number=max(meta.last_set_number, self.given_out.set_number),
            last_kek_id=max(meta.last_kek_id, self.given_out.kek_id),
        )

    def join(self, later: "Change") -> "Change":
        """Return one change that does what this one and then *later* does."""
        put = {key: body for key, body in self.put.items() if key not in later.delete} | dict(later.put)
        given_out = Numbers(*map(max, _numbers(self.given_out), _numbers(later.given_out)))
        raises_epoch = self.raises_epoch or later.raises_epoch
        return Change(later.current, put, (self.delete | later.delete) - put.keys(), given_out, raises_epoch)


def _numbers(numbers: Numbers) -> tuple[int, int, int]:
    return numbers.generation, numbers.set_number, numbers.kek_id
