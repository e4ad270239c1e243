"""What every backend of the store has to do for the audit. A test of a backend derives from it."""

import dataclasses
from collections.abc import Callable

from nexus.store.protocol import AuditHead, OutboxRow, Store, Writer
from tests.nexus.store.contract import NEXUS, load_audit, load_meta, make_mac, make_row, put


class AuditContract:
    """Derive, and define `store`, as `tests.nexus.store.contract.StoreContract`."""

    def test_audit_outbox(self, store: Store) -> None:
        """Entries come out in order, with their MACs, until exactly they are discarded, which is no change."""

        def append(*entries: bytes) -> Callable[[Writer], None]:
            def change(writer: Writer) -> None:
                for entry in entries:
                    writer.append_audit(NEXUS, entry, make_mac)

            return change

        store.write(append(b"1"))
        store.write(append())
        store.write(append(b"3a", b"3b", b"3c"))
        store.write(append(b"4"))
        places = [(1, 0, b"1"), (3, 0, b"3a"), (3, 1, b"3b"), (3, 2, b"3c"), (4, 0, b"4")]
        one, first, second, third, four = rows = [
            OutboxRow(NEXUS, revision, position, entry, make_mac(revision, position))
            for revision, position, entry in places
        ]
        assert load_audit(store) == rows
        assert load_audit(store, limit=2) == [one, first]
        assert load_audit(store, limit=2, after=(3, 0)) == [second, third]
        assert load_audit(store, after=(4, 0)) == []
        with store.read() as reader:
            assert reader.load_audit(NEXUS, limit=9, through=(3, 0)) == [one, first]
            assert reader.load_audit("another", limit=9) == []
        store.discard_audit(
            [one, second, dataclasses.replace(third, mac=b"another"), dataclasses.replace(four, entry=b"x")]
        )
        assert load_audit(store) == [first, third, four]
        store.discard_audit([one])
        assert load_meta(store).revision == 4

    def test_adopted_rows(self, store: Store) -> None:
        """Every row, of whatever nexus, gets the MAC that is made for it; where none is made it stays as it is."""

        def append(writer: Writer) -> None:
            for number in range(700):
                writer.append_audit(f"nexus-{number % 2 + 1}", b"%d" % number, make_mac)

        def make(row: OutboxRow) -> bytes | None:
            return b"a" * 32 if row.position % 3 else None

        store.write(append)
        store.write(lambda writer: writer.adopt_audit(make), counts=False)
        with store.read() as reader:
            rows = [row for name in ("nexus-1", "nexus-2") for row in reader.load_audit(name, limit=1_000)]
        assert len(rows) == 700
        assert all((row.mac == b"a" * 32) == bool(row.position % 3) for row in rows)

    def test_audit_head(self, store: Store) -> None:
        """The head of each nexus is replaced together with what is discarded."""
        put(store, make_row("a"))
        for seq in (1, 2):
            store.discard_audit(load_audit(store), AuditHead(NEXUS, 1, seq, bytes(32), 1, bytes(32)))
        with store.read() as reader:
            assert reader.load_audit_head(NEXUS) == AuditHead(NEXUS, 1, 2, bytes(32), 1, bytes(32))
            assert reader.load_audit_head("another") is None
        assert load_audit(store) == []

    def test_a_discard_for_another_era_does_nothing(self, store: Store) -> None:
        """Neither rows nor head change while the store is in another timeline, or of another root key."""
        put(store, make_row("a"))
        store.write(lambda writer: writer.save_meta(dataclasses.replace(writer.load_meta(), timeline=3, generation=2)))
        rows, head = load_audit(store), AuditHead(NEXUS, 3, 1, bytes(32), 1, bytes(32))
        for at in ((3, 1), (2, 2), (0, 0)):
            assert not store.discard_audit(rows, head, at=at)
        with store.read() as reader:
            assert reader.load_audit_heads() == []
        assert load_audit(store) == rows
        assert store.discard_audit(rows, head, at=(3, 2))
        with store.read() as reader:
            assert reader.load_audit_heads() == [head]
        assert load_audit(store) == []
