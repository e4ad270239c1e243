"""Random kill -9 of every process under load: what was acknowledged stays, and no get ever gives a wrong value."""

import itertools
import os
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

import shardhold
from shardhold.v1 import secrets_pb2 as pb
from tests.kit.cluster import Cluster
from tests.kit.patience import join, patiently
from tests.kit.person import TIMEOUT_S, Person
from tests.kit.seed import make_random

pytestmark = [pytest.mark.cluster, pytest.mark.destructive, pytest.mark.final, pytest.mark.timeout(1200)]

KILLS = 50
WRITERS = 3
READERS = 2
PATHS_EACH = 4
LOAD_BETWEEN_KILLS = 12  # acknowledged puts
APP = "/kills/app"


@dataclass
class Secret:
    """One secret, written by one thread only: what was tried, and what was acknowledged last."""

    path: str
    tried: int = 0
    acknowledged: int = 0
    versions: dict[int, int] = field(default_factory=dict)  # version → number

    def value(self, number: int) -> bytes:
        """Return the one right value of put *number*; long enough to fill pages."""
        return f"{self.path}#{number}#".encode() * 40


class Load:
    """Threads that put and get for as long as the block lasts."""

    def __init__(self, client: shardhold.Client) -> None:
        self._client = client
        self._stop = threading.Event()
        self._acknowledged = threading.Semaphore(0)
        self.secrets = [[Secret(f"kills/{writer}/{index}") for index in range(PATHS_EACH)] for writer in range(WRITERS)]
        self.faults: list[str] = []
        self.refused = 0
        self.read = 0
        self._threads = [threading.Thread(target=self._write, args=(own,), daemon=True) for own in self.secrets]
        self._threads += [threading.Thread(target=self._read_any, args=(seed,), daemon=True) for seed in range(READERS)]

    def keep_all(self, superuser: Person) -> None:
        """Put a first version of each secret, and have all that follow kept."""
        for secret in itertools.chain(*self.secrets):
            secret.tried = secret.acknowledged = 1
            secret.versions[self._client.put(secret.path, {"value": secret.value(1)}).version] = 1
            request = pb.UpdateSecretMetadataRequest(
                path=secret.path, max_versions=1_000_000, request_id=os.urandom(16)
            )
            superuser.secrets.UpdateSecretMetadata(request, timeout=TIMEOUT_S)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            join(thread, 60)
            assert not thread.is_alive(), "a writer or reader hangs in a call"

    def wait_acknowledged(self, count: int, *, timeout: float) -> bool:
        """Wait until *count* more puts were acknowledged."""
        return all(patiently(lambda s: self._acknowledged.acquire(timeout=s), timeout) for _ in range(count))

    def _write(self, own: list[Secret]) -> None:
        choose = random.Random(own[0].path)
        while not self._stop.is_set():
            secret = choose.choice(own)
            secret.tried += 1
            number = secret.tried
            try:
                stored = self._client.put(secret.path, {"value": secret.value(number)})
            except (shardhold.UnavailableError, shardhold.DeadlineError):
                self.refused += 1
                continue
            secret.acknowledged = number
            secret.versions[stored.version] = number
            self._acknowledged.release()
            self._read(secret)

    def _read(self, secret: Secret) -> None:
        try:
            found = self._client.get(secret.path)
        except (shardhold.UnavailableError, shardhold.DeadlineError):
            self.refused += 1
            return
        # Nobody else writes here: the newest version is what was acknowledged just now.
        if found.fields != {"value": secret.value(secret.acknowledged)}:
            self.faults.append(f"{secret.path}: version {found.version} is not put {secret.acknowledged}")

    def _read_any(self, seed: int) -> None:
        choose = random.Random(seed)
        secrets = [secret for own in self.secrets for secret in own]
        while not self._stop.is_set():
            secret = choose.choice(secrets)
            known = dict(secret.versions)
            version = choose.choice([0, *known])  # 0: the newest
            try:
                found = self._client.get(secret.path, version=version)
            except (shardhold.UnavailableError, shardhold.DeadlineError):
                self.refused += 1
            except shardhold.NotFoundError:
                if known:
                    self.faults.append(f"{secret.path}: version {version} is not found, {len(known)} were acknowledged")
            else:
                self.read += 1
                oldest = version or max(known, default=1)
                if found.version < oldest or not self._is_right(secret, known, found):
                    self.faults.append(
                        f"{secret.path}: version {version}, known up to {oldest}: {found.version} is wrong"
                    )

    @staticmethod
    def _is_right(secret: Secret, known: dict[int, int], found: shardhold.Secret) -> bool:
        """Whether it is what was acknowledged, or what was tried since."""
        value = found.fields.get("value", b"")
        if found.version in known:
            return value == secret.value(known[found.version])
        return value in {secret.value(number) for number in range(secret.tried + 1)}


@pytest.fixture
def load(fresh_cluster: Cluster) -> Iterator[Load]:
    """A load on a cluster that may break."""
    fresh_cluster.allow(APP, ["kills/**"], ["read", "write"])
    kept = Load(fresh_cluster.workload(APP))
    kept.keep_all(fresh_cluster.superuser)
    with kept as running:
        yield running


# Who is killed at once; the more often it stands here, the more often.
VICTIMS = (
    *[("nexus",)] * 4,
    *[("keeper",)] * 2,
    ("keeper", "keeper"),
    *[("nexus", "keeper")] * 2,
    ("nexus", "keeper", "keeper"),
    ("identity",),
    ("identity", "nexus"),
)


def test_fifty_random_kills_lose_nothing(fresh_cluster: Cluster, load: Load) -> None:
    """Fifty kills at random moments, a threshold of shards always left: every acknowledged put is there, exactly."""
    choose = make_random("kills")
    told: list[str] = []
    while len(told) < KILLS:
        assert load.wait_acknowledged(choose.randrange(1, LOAD_BETWEEN_KILLS), timeout=60), fresh_cluster.logs()
        victims = choose.choice(VICTIMS)
        keepers = choose.sample(fresh_cluster.keepers, victims.count("keeper"))
        names = [name for name in victims if name != "keeper"] + keepers
        told += names
        fresh_cluster.rerun(*names)
        if "nexus" in names and choose.random() < 0.25:
            told.append("nexus")
            fresh_cluster.rerun("nexus")  # wherever its recovery is
        fresh_cluster.wait_ready()
        fresh_cluster.wait_filled()  # else the next kill could leave fewer shards than the threshold
    assert load.wait_acknowledged(LOAD_BETWEEN_KILLS, timeout=60), fresh_cluster.logs()
    load.__exit__()
    assert {"nexus", "identity"} < set(told)
    assert not load.faults
    assert load.read
    check_everything(fresh_cluster, load)
    fresh_cluster.restart_nexus()
    check_everything(fresh_cluster, load)


def check_everything(cluster: Cluster, load: Load) -> None:
    """Read every acknowledged version back, and what came after it: a put that was cut off, whole, or nothing."""
    client = cluster.workload(APP)
    for secret in (secret for own in load.secrets for secret in own if secret.versions):
        for version, number in secret.versions.items():
            assert client.get(secret.path, version=version).fields == {"value": secret.value(number)}
        newest = client.get(secret.path)
        assert newest.version >= max(secret.versions)
        written = {secret.value(number) for number in range(secret.acknowledged, secret.tried + 1)}
        assert newest.fields["value"] in written


def test_a_kill_in_the_middle_of_the_first_writes(fresh_cluster: Cluster) -> None:
    """Puts in flight when the nexus dies were either made whole or not at all, and a retry makes one version."""
    fresh_cluster.allow(APP, ["kills/**"], ["read", "write"])
    with Load(fresh_cluster.workload(APP)) as load:
        for _ in range(3):
            assert load.wait_acknowledged(3, timeout=60), fresh_cluster.logs()
            fresh_cluster.restart_nexus()
    assert not load.faults
    check_everything(fresh_cluster, load)
    for secret in (secret for own in load.secrets for secret in own if secret.versions):
        newest = fresh_cluster.workload(APP).get(secret.path).version
        assert newest <= secret.tried, "one put made two versions"
