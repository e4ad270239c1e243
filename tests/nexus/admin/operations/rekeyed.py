"""A nexus whose root key and KEK were just replaced, with rows that are under the KEK of before; keepers are played."""

import base64
import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from common.errors import ConflictError
from common.keys.protected import ProtectedMemory
from nexus.admin.operations.keyring_job import KeyringJob
from nexus.keys import manifest, records
from nexus.keys.envelope import Place, seal_value
from nexus.keys.first_rows import FIRST_KEK
from nexus.keys.keyring import Keyring
from nexus.keys.opened import Serving
from nexus.keys.operation.change import Change
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Numbers
from nexus.keys.records import KekRecord, KekState
from nexus.keys.ruled_change import commit_decision, load_facts
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import VersionRow, Writer
from nexus.store.rewrapping import QuarantineRow, VersionKey, WrappedRow
from nexus.vault.expected import Expected
from nexus.vault.fields import encode_body
from tests.kit.manual_clock import ManualClock
from tests.kit.waiting import wait_until
from tests.nexus.cluster import NEXUS_NAME, SUPERUSERS, FoundCluster, FoundedCluster
from tests.nexus.core import APP, NexusCore, make_ready
from tests.nexus.failing_store import FailingStore
from tests.nexus.rotated import rotate

OLD, NEW = FIRST_KEK, FIRST_KEK + 1
INCARNATION = b"i" * 16
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)


def name_path(number: int) -> str:
    """Name the secret with this number."""
    return f"team/app/{number:04}"


def make_key(number: int) -> VersionKey:
    """Name its version."""
    return VersionKey(name_path(number), INCARNATION, 1)


@dataclass
class Rekeyed:
    """A nexus that serves generation 2 after a flip that is settled. The job's thread runs only if a test starts it."""

    cluster: FoundedCluster
    store: FailingStore
    core: NexusCore
    values: dict[str, bytes]
    rate: float = 0.0
    clock: ManualClock = field(default_factory=ManualClock)

    def __post_init__(self) -> None:
        self.job = self.make_job()

    def make_job(self) -> KeyringJob:
        """Make a job that stops and goes as this says, by a clock that stands still."""
        return KeyringJob(
            store=self.store,
            lifecycle=self.core.lifecycle,
            warden=self.core.warden,
            clock=self.clock,
            nexus=NEXUS_NAME,
            find_rate=lambda: self.rate,
        )

    @property
    def keyring(self) -> Keyring:
        """The keyring in memory."""
        return self.core.lifecycle.require_serving().keyring

    @property
    def facts(self) -> Facts:
        """What rules see now."""
        with self.core.lifecycle.borrow() as serving, self.cluster.store.read() as reader:
            return load_facts(reader, serving.root_key)

    @property
    def keks(self) -> Mapping[str, KekRecord]:
        """The keyring in the store."""
        return self.facts.keyring.keks

    @property
    def rows(self) -> dict[str, WrappedRow]:
        """Every version, by path."""
        with self.cluster.store.read() as reader:
            return {row.path: row for row in reader.scan_versions(limit=100_000)}

    @property
    def keks_of_rows(self) -> dict[int, int]:
        """How many rows are under which KEK."""
        return dict(Counter(row.kek_id for row in self.rows.values()))

    @property
    def quarantine(self) -> list[QuarantineRow]:
        """What did not open."""
        with self.cluster.store.read() as reader:
            return reader.list_quarantine(limit=1000)

    def get(self, number: int) -> bytes:
        """Read a secret as a caller."""
        return self.core.vault.get(APP, name_path(number), 0).fields["value"]

    def put(self, number: int, value: bytes) -> None:
        """Write its next version."""
        self.core.vault.put(APP, name_path(number), {"value": value}, Expected(), os.urandom(16))

    def delete(self, number: int) -> None:
        """Delete it."""
        self.core.vault.delete(APP, name_path(number), [], Expected(), os.urandom(16))

    def check_values(self) -> None:
        """See that every value opens."""
        assert {path: self.core.vault.get(APP, path, 1).fields["value"] for path in self.values} == self.values

    def flip_kek(self) -> int:
        """Let another KEK follow, under the same root key; return its number."""
        number = self.cluster.load()[0].last_kek_id + 1

        def decide(facts: Facts, wrap: bytes) -> Change:
            keks = {
                name: msgspec.structs.replace(kek, state=KekState.OLD) if kek.state is KekState.CURRENT else kek
                for name, kek in facts.keyring.keks.items()
            }
            keks[str(number)] = KekRecord(wrap, KekState.CURRENT, facts.generation)
            put = {(records.KEYRING, str(facts.generation)): records.encode(records.KeyringRecord(keks))}
            return Change(msgspec.structs.replace(facts.current, kek_id=number), put, given_out=Numbers(kek_id=number))

        def flip(serving: Serving) -> None:
            keyring = Keyring(serving.keyring.memory)
            wrap = keyring.make_kek(number, serving.root_key)
            commit_decision(
                self.store,
                serving,
                lambda _, facts: decide(facts, wrap),
                lambda writer, key: None,
                on_commit=lambda: serving.keyring.take_current(keyring),
            )

        self.core.warden.change(flip)
        return number

    def edit(self, sql: str, *parameters: object) -> None:
        """Change the database behind Shardhold's back."""
        with closing(sqlite3.connect(self.core.folder / "nexus.db")) as connection, connection:
            assert connection.execute(sql, parameters).rowcount >= 1, sql

    def edit_version(self, number: int, **columns: object) -> None:
        """Change columns of a version behind Shardhold's back."""
        names = ", ".join(f"{name} = ?" for name in columns)
        self.edit(f"UPDATE versions SET {names} WHERE path = ?", *columns.values(), name_path(number))

    def step(self) -> float:
        """Let the job take a step, and another one where somebody else was first."""
        while True:
            with contextlib.suppress(ConflictError):
                return self.job.step()

    def work_until(self, condition: Callable[[], bool], what: str = "the job") -> None:
        """Let the job work, in this thread, until the condition holds."""

        def act() -> bool:
            if condition():
                return True
            self.step()
            return condition()

        wait_until(act, what=what)

    def work_to_rest(self) -> None:
        """Let the job work until there is nothing to do any more."""
        while self.step() < 1.0:
            pass


def make_rekeyed(
    found: FoundCluster,
    folder: Path,
    failing: FailingStore,
    memory: ProtectedMemory,
    *,
    rows: int = 12,
    is_tainted: bool = False,
    waives_backup: bool = True,
) -> Rekeyed:
    """Found a cluster with as many secrets, rotate it, and serve it."""
    founded = found(keepers=3, threshold=2, policies=[SUPERUSERS, TEAM])
    values = {name_path(number): b"value %d" % number for number in range(rows)}
    fill(founded, values)
    rotated = rotate(founded)
    settle(rotated, is_tainted=is_tainted, waives_backup=waives_backup)
    core = NexusCore(folder, failing, memory, rotated.keepers())
    make_ready(core, rotated)
    return Rekeyed(rotated, failing, core, values)


def fill(cluster: FoundedCluster, values: Mapping[str, bytes]) -> None:
    """Put secrets, all of one incarnation."""
    serving = cluster.prove_without_points()

    def write(writer: Writer) -> None:
        for path, value in values.items():
            place = Place(cluster.cluster_id, path, INCARNATION, 1)
            sealed = seal_value(encode_body({"value": value}), place, serving.keyring)
            wrap = (sealed.kek_id, sealed.dek_id, sealed.wrapped_dek, sealed.value)
            writer.insert_version(VersionRow(path, INCARNATION, 1, *wrap, created_at=1, deleted=False), caller="test")

    cluster.store.write(write)
    serving.release()


def settle(cluster: FoundedCluster, *, is_tainted: bool, waives_backup: bool) -> None:
    """Delete what a flip keeps of the generation before, and say how it was meant."""
    serving = cluster.prove_without_points()
    with cluster.store.read() as reader:
        facts = load_facts(reader, serving.root_key)
    generation = msgspec.structs.replace(facts.generations[2], without_backup="test" if waives_backup else "")
    keks: dict[str, Any] = dict(facts.keyring.keks)
    if is_tainted:
        keks[str(OLD)] = msgspec.structs.replace(keks[str(OLD)], state=KekState.TAINTED)
    put = {
        (records.GENERATION, "2"): records.encode(generation),
        (records.KEYRING, "2"): records.encode(records.KeyringRecord(keks)),
    }
    delete = [(kind, "1") for kind in (records.KEYRING, records.ESCROW)]
    cluster.store.write(
        lambda writer: manifest.change(writer, serving.root_key, serving.floor, put=put, delete=delete), alone=True
    )
    serving.release()


def find_in_files(folder: Path, *secrets: bytes) -> list[str]:
    """Return where any of *secrets*, as they are or as JSON rows have them, is in a file of the store."""
    forms = {form: n for n, secret in enumerate(secrets) for form in (secret, base64.b64encode(secret))}
    return [
        f"{number} in {path.name}"
        for path in sorted(folder.glob("nexus.db*"))
        for form, number in forms.items()
        if form in path.read_bytes()
    ]
