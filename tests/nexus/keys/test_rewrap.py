"""What the keyring job makes of one version, beside the way that the vault seals and opens it."""

from collections.abc import Iterator

import pytest

from common.errors import CorruptRowError, DecryptionError, IntegrityError
from common.keys.protected import ProtectedMemory
from nexus.keys.envelope import Place, SealedValue, open_value, seal_value
from nexus.keys.keyring import Keyring
from nexus.keys.rewrap import Rewrapper
from nexus.store.rewrapping import WrappedRow
from tests.nexus.keys.test_keyring import make_root_key

PLACE = Place(b"c" * 16, "team/db", b"i" * 16, 3)


@pytest.fixture
def keyring(memory: ProtectedMemory) -> Iterator[Keyring]:
    """KEK 2 is old, and 3 is current."""
    root_key, keyring = make_root_key(memory), Keyring(memory)
    for kek_id in (2, 3):
        keyring.make_kek(kek_id, root_key)
    yield keyring
    keyring.release()
    root_key.release()


@pytest.fixture
def rewrapper(keyring: Keyring) -> Iterator[Rewrapper]:
    """One batch."""
    with Rewrapper(keyring, PLACE.cluster_id) as rewrapper:
        yield rewrapper


def seal_old(keyring: Keyring, body: bytes) -> tuple[WrappedRow, bytes]:
    """Seal as the vault did when KEK 2 was current."""
    keyring.current_id = 2
    sealed = seal_value(body, PLACE, keyring)
    keyring.current_id = 3
    row = WrappedRow(1, PLACE.path, PLACE.incarnation, PLACE.version, 2, sealed.dek_id, sealed.wrapped_dek)
    return row, sealed.value


BODIES = [pytest.param(b"", id="empty"), pytest.param(b"x", id="one byte"), pytest.param(b"value" * 9999, id="long")]


@pytest.mark.parametrize("body", BODIES)
def test_a_value_opens_under_its_new_wrap(keyring: Keyring, rewrapper: Rewrapper, body: bytes) -> None:
    """DEK and value are the same, and the vault opens them."""
    row, value = seal_old(keyring, body)
    made = rewrapper.rewrap(row)
    assert (made.before, made.kek_id) == (row, 3)
    assert made.wrapped_dek != row.wrapped_dek
    assert open_value(SealedValue(3, row.dek_id, made.wrapped_dek, value), PLACE, keyring) == body


@pytest.mark.parametrize("body", BODIES)
def test_a_value_opens_under_its_new_dek(keyring: Keyring, rewrapper: Rewrapper, body: bytes) -> None:
    """And under no old one: id, wrap and ciphertext are new."""
    row, value = seal_old(keyring, body)
    made = rewrapper.reseal(row, value)
    assert made.kek_id == 3
    assert made.dek_id != row.dek_id
    assert made.value != value
    assert open_value(SealedValue(3, made.dek_id, made.wrapped_dek, made.value), PLACE, keyring) == body
    with pytest.raises(DecryptionError):
        open_value(SealedValue(2, row.dek_id, row.wrapped_dek, made.value), PLACE, keyring)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"path": "team/other"}, id="another path"),
        pytest.param({"incarnation": b"j" * 16}, id="another incarnation"),
        pytest.param({"version": 4}, id="another version"),
        pytest.param({"dek_id": bytes(16)}, id="another DEK"),
        pytest.param({"kek_id": 3}, id="another KEK"),
        pytest.param({"wrapped_dek": b""}, id="no wrap"),
        pytest.param({"wrapped_dek": bytes(98)}, id="another format"),
    ],
)
def test_a_row_that_is_not_as_it_was_sealed_does_not_open(
    keyring: Keyring, rewrapper: Rewrapper, change: dict[str, object]
) -> None:
    """The row is at fault, and the next one is as good as before."""
    row, value = seal_old(keyring, b"value")
    damaged = row._replace(**change)  # type: ignore[arg-type]
    with pytest.raises(DecryptionError):
        rewrapper.rewrap(damaged)
    with pytest.raises(DecryptionError):
        rewrapper.reseal(damaged, value)
    assert rewrapper.rewrap(row).kek_id == 3


def test_a_kek_that_is_not_there_is_named(keyring: Keyring, rewrapper: Rewrapper) -> None:
    """The row is at fault here as well."""
    row, _ = seal_old(keyring, b"value")
    with pytest.raises(CorruptRowError, match="row names KEK 7"):
        rewrapper.rewrap(row._replace(kek_id=7))


class WrongTwice:
    """A keyring that gives another KEK when what was just made is opened again."""

    def __init__(self, keyring: Keyring, at: int) -> None:
        self.memory, self.scratch, self.current_id = keyring.memory, keyring.scratch, keyring.current_id
        self._keyring = keyring
        self._left = at

    def find_kek(self, kek_id: int) -> memoryview:
        self._left -= 1
        return self._keyring.find_kek(kek_id if self._left else 2)


@pytest.mark.parametrize("way", ["rewrap", "reseal"])
def test_what_does_not_open_as_it_was_made_is_no_fault_of_the_row(keyring: Keyring, way: str) -> None:
    """It is found before it is stored, and no row goes into quarantine for it."""
    row, value = seal_old(keyring, b"value")
    with Rewrapper(WrongTwice(keyring, at=3), PLACE.cluster_id) as rewrapper:  # type: ignore[arg-type]
        with pytest.raises(IntegrityError) as caught:
            rewrapper.rewrap(row) if way == "rewrap" else rewrapper.reseal(row, value)
        assert type(caught.value) is IntegrityError


class WrongDek(Rewrapper):
    """Gives back another DEK than the one that the value was sealed under."""

    def _wrap(self, place: bytes) -> bytes:
        wrap = super()._wrap(place)
        self._again[0] ^= 1
        return wrap


def test_a_new_value_is_opened_with_what_its_wrap_gave_back(keyring: Keyring) -> None:
    """Otherwise a value could be stored that nothing opens."""
    row, value = seal_old(keyring, b"value")
    with WrongDek(keyring, PLACE.cluster_id) as rewrapper, pytest.raises(IntegrityError, match="a new value") as caught:
        rewrapper.reseal(row, value)
    assert type(caught.value) is IntegrityError


def test_a_batch_leaves_nothing_in_protected_memory(keyring: Keyring, memory: ProtectedMemory) -> None:
    """Its buffer is wiped and given back."""
    row, _ = seal_old(keyring, b"value")
    with keyring.scratch.allocate(32):
        pass  # made once, and kept
    before = memory.free
    with Rewrapper(keyring, PLACE.cluster_id) as rewrapper:
        rewrapper.rewrap(row)
        buffer = rewrapper._buffer
        assert any(buffer.view)
        place = memory.ranges[0][0]
    assert memory.free == before
    assert place
    assert not buffer._held


def test_a_forgotten_kek_is_wiped(keyring: Keyring) -> None:
    """Nothing opens under it; the current one cannot be forgotten, and twice is as once."""
    view = keyring.find_kek(2)
    keyring.forget_kek(2)
    keyring.forget_kek(2)
    with pytest.raises(CorruptRowError):
        keyring.find_kek(2)
    with pytest.raises(ValueError, match="released"):
        bytes(view)
    with pytest.raises(Exception, match="KEK 3 is current"):
        keyring.forget_kek(3)


def test_no_salt_is_used_twice(keyring: Keyring, rewrapper: Rewrapper) -> None:
    """Not even once the salts of one call of the kernel are used up: with a fixed nonce the key must be another one."""
    row, _ = seal_old(keyring, b"value")
    salts = [rewrapper.rewrap(row).wrapped_dek[2:18] for _ in range(200)]
    assert len(set(salts)) == 200
