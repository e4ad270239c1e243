"""Canaries: values and keys that one searches for wherever they must not be, in every form that a leak could have."""

import contextlib
import re
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.forms.delivery import SetLabel, build_fetch_info
from common.keys.sealing import OneShotKey
from common.keys.shamir import SHARD_SIZE
from keeper.v1 import keeper_pb2
from keeper.v1.keeper_pb2_grpc import KeeperServiceStub
from nexus.keys.records import MemberRecord
from pilot.dev.configuration import socket_path
from pilot.dev.identities import Identity
from shardhold import WorkloadAPI
from shardhold.channel import PinnedChannel
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.person import NEXUS_ID
from tests.kit.process_memory import make_forms
from tests.kit.stored_keys import StoredCluster

_RUN_OF_WORDS = 3  # that stand side by side: two may come by chance
_SAMPLE_S = 0.005


@dataclass(frozen=True)
class Canaries:
    """What is searched for, by the bytes that would betray it."""

    patterns: Mapping[bytes, str]
    _search: re.Pattern[bytes]

    @classmethod
    def make(cls, secrets: Mapping[str, bytes], words: Mapping[str, str]) -> "Canaries":
        """Take keys and values in all their forms, and recovery words in runs of three."""
        patterns = {
            pattern: f"{name} as {form}" for name, secret in secrets.items() for form, pattern in list_forms(secret)
        }
        for name, share in words.items():
            listed = share.split()
            for start in range(len(listed) - _RUN_OF_WORDS + 1):
                patterns[" ".join(listed[start : start + _RUN_OF_WORDS]).encode()] = f"words of {name}"
        return cls(patterns, re.compile(b"|".join(re.escape(pattern) for pattern in patterns)))

    def find(self, content: bytes) -> set[str]:
        """Return what of it is in *content*, with the form."""
        return {self.patterns[hit.group()] for hit in self._search.finditer(content)}

    def find_all(self, contents: Mapping[str, bytes]) -> dict[str, set[str]]:
        """Return what is found, by the name of the content; nothing for what is clean."""
        found = {name: self.find(content) for name, content in contents.items()}
        return {name: what for name, what in found.items() if what}


def list_forms(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """Name every form in which text, a file or a URL could hold *secret*."""
    yield from make_forms(secret).items()
    yield "url", urllib.parse.quote_from_bytes(secret).encode()
    yield "repr", repr(secret)[2:-1].encode()


def read_tree(folder: Path, *, without: Path) -> dict[str, bytes]:
    """Read all files below *folder* but those below *without*."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and without not in path.parents)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read_process(pid: int) -> dict[str, bytes]:
    """Read what everybody, or root, sees of a process: command line, environment, names of threads."""
    folder = Path(f"/proc/{pid}")
    shown = {str(path): path.read_bytes() for path in (folder / "cmdline", folder / "environ")}
    for name in folder.glob("task/*/comm"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # this thread has ended
            shown[str(name)] = name.read_bytes()
    return shown


def fetch_shards(cluster: Cluster, stored: StoredCluster) -> dict[str, bytes]:
    """Fetch every keeper's shard of the set of *stored*, as the nexus would; its y, since x is no secret."""
    label = stored.shard_set.label(stored.cluster_id, cluster.superuser.get_status().genesis)
    return {
        f"shard of {member.name} in set {label.set_number}": fetch_shard(cluster, label, member)
        for member in stored.shard_set.members
    }


def fetch_shard(cluster: Cluster, label: SetLabel, member: MemberRecord) -> bytes:
    """Fetch one keeper's shard of a set, as the nexus would; its y, since x is no secret."""
    key = OneShotKey()
    request = keeper_pb2.FetchShardRequest(
        cluster_id=label.cluster_id, set_id=label.set_id, public_key=key.public_bytes
    )
    with contextlib.closing(WorkloadAPI(f"unix:{socket_path(cluster.dev.state, 'nexus')}")) as identity:
        address = f"127.0.0.1:{cluster.dev.state.ports[member.name].grpc}"
        with PinnedChannel(address, identity, server_name=f"{member.name}.keeper.shardhold") as channel:
            answer = KeeperServiceStub(channel).FetchShard(request, timeout=at_most(10))
    info = build_fetch_info(
        label,
        x=member.x,
        boot_id=answer.boot_id,
        keeper_id=member.spiffe_id,
        nexus_id=NEXUS_ID,
        public_key=key.public_bytes,
    )
    shard = bytearray(SHARD_SIZE)
    key.open(answer.sealed_shard, info=info, into=memoryview(shard))
    return bytes(shard[:-1])


@dataclass(frozen=True)
class Run:
    """A command that has ended, and what was seen of it while it ran."""

    exit_code: int
    out: bytes
    err: bytes
    seen: Mapping[str, bytes]  # by file of /proc


def run_watched(cluster: Cluster, *arguments: str, path: str, stdin: bytes) -> Run:
    """Run pilot, give it *stdin*, and look at it in /proc again and again until it has ended."""
    seen: dict[str, bytes] = {}
    command = [sys.executable, "-P", "-m", "pilot", *arguments]
    environ = cluster.dev.environ(Identity(path=path))
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environ, stdin=pipe, stdout=pipe, stderr=pipe) as process:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_SAMPLE_S):
                try:
                    for name, content in read_process(process.pid).items():
                        # What differs from before stays beside it.
                        if content not in seen.get(name, b""):
                            seen[name] = seen.get(name, b"") + content
                except (FileNotFoundError, ProcessLookupError):
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            out, err = process.communicate(stdin, timeout=at_most(60))
        finally:
            ended.set()
            watcher.join()
    return Run(process.returncode, out, err, seen)


def list_words(cluster: Cluster) -> dict[str, str]:
    """Return the recovery words by custodian."""
    return {f"custodian {number}": words for number, words in enumerate(cluster.words, start=1)}
