"""What every backend of the store has to do about requests. A test of a backend derives from it."""

import dataclasses

import pytest

from common.errors import StoreUnavailableError
from nexus.store.protocol import Store, Writer
from tests.nexus.store.contract import CALLER, load_meta, make_request, make_row, put, request, save


class _DeliberateError(Exception):
    """Raised by a change on purpose."""


class RequestContract:
    """Derive, and define `store`, as `tests.nexus.store.contract.StoreContract`."""

    def test_a_request_is_found_by_caller_and_id(self, store: Store) -> None:
        """A request comes back as it was saved, to its caller alone, one without an HMAC too."""
        many = make_request(1, (1, 2, 300), revision=7)
        bare = dataclasses.replace(make_request(2), rpc="DeleteSecret", path="a/b", generation=0, mac=b"")
        other = make_request(1, caller="other", revision=9)
        save(store, many, bare, other)
        with store.read() as reader:
            assert reader.find_request(CALLER, request(1)) == many
            assert reader.find_request(CALLER, request(2)) == bare
            assert reader.find_request("other", request(1)) == other
            assert reader.find_request("other", request(2)) is None
            assert reader.find_request(CALLER, request(3)) is None

    def test_a_request_outlives_its_secret(self, store: Store) -> None:
        """A request is found as before when its versions are deleted, and when the secret is removed."""
        put(store, make_row("a"), request_id=request(1))
        with store.read() as reader:
            before = reader.find_request(CALLER, request(1))
        assert before is not None
        store.write(lambda writer: writer.mark_deleted("a", [1], caller=CALLER))
        store.write(lambda writer: writer.delete_secret("a"))
        with store.read() as reader:
            assert reader.find_request(CALLER, request(1)) == before

    def test_a_caller_has_one_request_of_an_id(self, store: Store) -> None:
        """A second request under an id of the same caller loses its change, whatever that made."""
        save(store, make_request(1))

        def stubborn(writer: Writer) -> None:
            writer.insert_version(make_row("b"), caller=CALLER)
            with pytest.raises(StoreUnavailableError):
                writer.save_request(make_request(1, (2,), revision=2))

        with pytest.raises(StoreUnavailableError):
            store.write(stubborn)
        save(store, make_request(1, caller="other"), make_request(2))
        with store.read() as reader:
            assert reader.find_request(CALLER, request(1)) == make_request(1)
            assert reader.load_secret("b") is None

    def test_requests_outside_a_time_are_discarded(self, store: Store) -> None:
        """Of those that were saved first, the ones made before or after the time go; that is no change."""
        times = {1: 10, 2: 99, 3: 100, 4: 200, 5: 201, 6: 10}
        for number, made_at in times.items():
            save(store, make_request(number, made_at=made_at))
        revision = load_meta(store).revision

        def list_left() -> list[int]:
            with store.read() as reader:
                return [number for number in times if reader.find_request(CALLER, request(number))]

        def discard(limit: int) -> int:
            return store.discard_requests(made_from=100, made_until=200, limit=limit)

        assert (discard(1), list_left()) == (1, [2, 3, 4, 5, 6])
        assert (discard(4), list_left()) == (2, [3, 4, 6])
        assert (discard(2), list_left()) == (0, [3, 4, 6])
        assert (discard(9), list_left()) == (1, [3, 4])
        assert load_meta(store).revision == revision
        save(store, make_request(6))
        assert list_left() == [3, 4, 6]
