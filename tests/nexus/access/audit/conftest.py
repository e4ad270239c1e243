"""A store, an audit, a key and exporters of them."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nexus.access.audit.exporter import Exporter
from nexus.access.audit.log import AuditLog
from nexus.store.protocol import Store
from nexus.store.sqlite.store import SqliteStore
from tests.nexus.access.audit.exports import MakeExporter
from tests.nexus.access.audit.keyed import (
    FixedKey,
)

WaitUntil = Callable[..., None]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    """A store of its own."""
    store = SqliteStore.open(tmp_path / "nexus.db")
    yield store
    store.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[AuditLog]:
    """An audit of its own."""
    log = AuditLog.open(tmp_path, nexus="nexus-1", timeline=1)
    yield log
    log.close()


@pytest.fixture
def key() -> FixedKey:
    """The key of the outbox, which is there until a test takes it away."""
    return FixedKey()


@pytest.fixture
def make_exporter(store: SqliteStore, log: AuditLog, key: FixedKey) -> MakeExporter:
    """Make an exporter of the store and the audit, which are in one timeline."""
    store.write(lambda writer: writer.save_meta(replace(writer.load_meta(), timeline=1)), counts=False)

    def make(*, store: Store = store, **options: object) -> Exporter:
        return Exporter(store, log, borrow_key=key.borrow, **options)  # type: ignore[arg-type]

    return make
