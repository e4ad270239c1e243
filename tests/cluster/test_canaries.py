"""A known value and all keys of a cluster, searched for wherever nobody may ever find them.

The cluster has done what it does by then: init, writes and reads, refusals of every kind, a rotation, a seal and an
unseal by custodians, kill -9 and recovery. It is looked at after the rotation, while sealed, after the unseal, and in
the end. It logs all that it can: its own level is debug, and gRPC's too. Memory is not searched here, but in
tests/memory.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

import shardhold
from pilot.dev.cluster import server_command
from pilot.dev.directory import Plan
from pilot.dev.identities import SUPERUSER_PATH
from pilot.dev.spawn import exec_program
from tests.cluster.canary import (
    Canaries,
    Run,
    fetch_shards,
    list_forms,
    list_words,
    read_process,
    read_tree,
    run_watched,
)
from tests.kit.cluster import Cluster
from tests.kit.patience import at_most
from tests.kit.refusal import read_outcome
from tests.kit.stored_keys import derive_keys, load_stored

pytestmark = [pytest.mark.cluster, pytest.mark.final]

APP = "/canary/app"
PATH = "canary/secret"
TEXT = f"canary {os.urandom(12).hex()} §%"  # would be changed by JSON, by a URL and by a repr
BINARY = os.urandom(32)
PAGES = ("/metrics", "/livez", "/readyz", "/nothing")
FIELD = f"field-{os.urandom(8).hex()}"


@dataclass
class Haunted:
    """A cluster that has been used, and what came out of it."""

    cluster: Cluster
    keys: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, bytes] = field(default_factory=dict)  # texts that callers got
    runs: list[Run] = field(default_factory=list)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)  # by when they were read
    pages: dict[str, bytes] = field(default_factory=dict)  # what HTTP answered
    shown: dict[str, bytes] = field(default_factory=dict)  # what /proc has of the processes
    canaries: Canaries = field(init=False)

    def collect_keys(self) -> None:
        """Find out all keys that there are now."""
        stored = load_stored(self.cluster)
        self.keys |= derive_keys(stored, self.cluster.directory.recovery_shares)
        self.keys |= fetch_shards(self.cluster, stored)

    def look(self, when: str) -> None:
        """Keep all that there is to be seen now: files, pages, and what /proc shows if that may be read."""
        cluster = self.cluster
        self.files[when] = read_tree(cluster.directory.root, without=cluster.directory.recovery_shares)
        for name in ("nexus", *cluster.keepers):
            for page in PAGES:
                self.pages[f"{when}: {name}{page}"] = cluster.fetch(name, page).encode()
        for name in cluster.dev.names:
            with contextlib.suppress(PermissionError):
                process = read_process(cluster.dev.state.processes[name].pid)
                self.shown[f"{when}: {name}"] = b"\n".join(process.values())

    def refuse(self, what: str, client: shardhold.Client, **put: object) -> None:
        """Put the value where it is refused, and keep the error."""
        with pytest.raises(shardhold.Error) as caught:
            client.put(PATH, {FIELD: TEXT, "binary": BINARY}, **put)  # type: ignore[arg-type]
        self.errors[what] = f"{caught.value} {caught.value!r}".encode()

    def pilot(self, *arguments: str, stdin: bytes, path: str = SUPERUSER_PATH, exit_code: int = 0) -> None:
        run = run_watched(self.cluster, *arguments, path=path, stdin=stdin)
        assert run.exit_code == exit_code, run.err.decode()
        self.errors[f"pilot {arguments[:2]} {len(self.runs)}"] = run.err
        self.runs.append(run)


@pytest.fixture(scope="module")
def haunted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Haunted]:
    """Three keepers, threshold two, that have seen it all."""
    cluster = Cluster(tmp_path_factory.mktemp("canaries") / "dev", Plan(keepers=3, threshold=2), spawn=exec_program)
    haunted = Haunted(cluster)
    try:
        cluster.start_by(lambda name: command_talkative(cluster, name))
        cluster.dev.init()
        cluster.wait_filled()
        haunted.collect_keys()
        write_and_read(haunted)
        be_refused(haunted)
        rotate(haunted)
        seal_and_unseal(haunted)
        cluster.kill("nexus")
        cluster.processes.start_instead("nexus", command_talkative(cluster, "nexus"))
        cluster.wait_ready()
        cluster.wait_filled()
        haunted.collect_keys()
        haunted.look("in the end")
        values = {"text": TEXT.encode(), "binary": BINARY}
        haunted.canaries = Canaries.make(values | haunted.keys, list_words(cluster))
        yield haunted
    finally:
        cluster.close()


def command_talkative(cluster: Cluster, name: str) -> list[str]:
    """Return the command of a server that logs as much as it can be told to."""
    program = "NEXUS" if name == "nexus" else "KEEPER"
    talk = [f"SHARDHOLD_{program}__LOG__LEVEL=debug", "GRPC_VERBOSITY=debug"]
    return ["env", *talk, *server_command(cluster.directory, name)]


def write_and_read(haunted: Haunted) -> None:
    """By SDK and pilot, which takes the value from standard input."""
    cluster = haunted.cluster
    cluster.allow(APP, ["canary/**"], ["read", "write", "delete", "list"])
    client = cluster.workload(APP)
    client.put(PATH, {FIELD: TEXT, "binary": BINARY})
    assert client.get(PATH).fields[FIELD] == TEXT.encode()
    haunted.pilot("secret", "put", "canary/pilot", f"{FIELD}=-", stdin=TEXT.encode())
    haunted.pilot("secret", "get", "canary/pilot", stdin=b"")
    assert TEXT.encode() in haunted.runs[-1].out, "what is asked for is shown"
    haunted.pilot("secret", "get", "canary/pilot", "-o", "json", stdin=b"")
    client.put("canary/gone", {FIELD: BINARY})
    client.delete("canary/gone")


def be_refused(haunted: Haunted) -> None:
    """With the value in the request, for every reason that a caller can give."""
    cluster = haunted.cluster
    client = cluster.workload(APP)
    haunted.refuse("conflict", client, expected_version=99)
    haunted.refuse("denied", cluster.workload("/canary/stranger"))
    used = os.urandom(16)
    client.put("canary/other", {FIELD: TEXT}, request_id=used)
    haunted.refuse("request id", client, request_id=used)
    for fields in ({FIELD: TEXT * 50_000}, {f"{FIELD} {TEXT}": TEXT}, {}):
        with pytest.raises(shardhold.Error) as caught:
            client.put(PATH, fields)
        haunted.errors[f"fields {len(fields)} {len(haunted.errors)}"] = str(caught.value).encode()
    # The value stands on the command line, by a mistake of whoever typed it: at least it is not repeated.
    typed = cluster.pilot("secret", "put", PATH, TEXT, exit_code=2)
    haunted.errors["pilot, value typed"] = typed.stderr.encode()
    typed = cluster.pilot("secret", "put", PATH, f"{TEXT}=", exit_code=2)
    haunted.errors["pilot, value typed, = behind it"] = typed.stderr.encode()


def rotate(haunted: Haunted) -> None:
    """An emergency: the nexus opens every value and seals it anew, and the keepers get shards of another root key."""
    why = ("--reason", "canaries", "--without-backup", "canaries")
    haunted.pilot("root", "rotate", "--emergency", "--yes", *why, "--wait", stdin=b"")
    for command in ("status", "history"):
        haunted.pilot("root", command, stdin=b"")
    haunted.errors["pilot root"] = b"\n".join(run.out for run in haunted.runs[-3:])
    assert b"compromised" in haunted.errors["pilot root"]
    haunted.cluster.wait_filled()
    haunted.collect_keys()
    assert haunted.cluster.workload(APP).get(PATH).fields[FIELD] == TEXT.encode()
    haunted.look("rotated")


def seal_and_unseal(haunted: Haunted) -> None:
    """By share cards on standard input; a wrong word and a share that is sealed for another session on the way."""
    cluster = haunted.cluster
    cards = [card.read_bytes() for card in sorted(cluster.directory.recovery_shares.iterdir())]
    cluster.superuser.seal("canaries")
    haunted.refuse("sealed", cluster.workload(APP))
    haunted.look("sealed")
    words = cluster.words
    wrong = " ".join([*words[0].split()[1:], words[0].split()[0]])
    as_custodian = "/shardhold/pilot/role/recover/custodian-{}"
    haunted.pilot("unseal", "-", stdin=wrong.encode(), path=as_custodian.format(1), exit_code=2)
    haunted.pilot("unseal", "-", stdin=cards[0], path=as_custodian.format(1))
    custodian = cluster.custodian(2)
    session = custodian.get_progress().session.session_id
    bound = custodian.seal_share(session, bytes(66))
    haunted.errors["a share that is none"] = read_outcome(lambda: custodian.submit(bound)).details.encode()
    for number in (2, 3):
        haunted.pilot("unseal", "-", stdin=cards[number - 1], path=as_custodian.format(number))
    cluster.wait_ready()
    cluster.wait_filled()
    haunted.look("unsealed")


def test_files_hold_nothing(haunted: Haunted) -> None:
    """Logs of every process, database with WAL and SHM, audit, configuration: everything but the share cards."""
    assert haunted.files.keys() == {"rotated", "sealed", "unsealed", "in the end"}
    names = Canaries.make({"name of a field": FIELD.encode()}, {})
    for when, files in haunted.files.items():
        found = set(files)
        assert {
            "data/nexus.db",
            "data/nexus.db-wal",
            "data/nexus.db-shm",
            "config/nexus.toml",
            "config/keeper-1.toml",
        } <= found
        assert {f"logs/{name}.log" for name in haunted.cluster.dev.names} <= found
        assert any(name.startswith("audit/") and files[name] for name in found)
        assert haunted.canaries.find_all(files) == {}, when
        assert names.find_all(files) == {}, f"{when}: names of fields are encrypted with their values"


@pytest.mark.needs("memory")
def test_logs_were_asked_for_everything(haunted: Haunted) -> None:
    """What was searched are the logs of servers that were told to log all they can."""
    for name in ("nexus", *haunted.cluster.keepers):
        environ = haunted.shown[f"in the end: {name}"]
        assert b"LOG__LEVEL=debug" in environ
        assert b"GRPC_VERBOSITY=debug" in environ


@pytest.mark.parametrize("name", ["nexus", "keeper-1"])
def test_a_server_that_is_told_to_trace_does_not_start(haunted: Haunted, name: str) -> None:
    """The traces of gRPC, which are no log, would have every value in them: exit code 2, and the variable is named."""
    command = [*server_command(haunted.cluster.directory, name), "--check-config"]
    environ = os.environ | {"GRPC_TRACE": "secure_endpoint", "GRPC_VERBOSITY": "debug"}
    ended = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=at_most(60), check=False)
    assert ended.returncode == 2
    assert "error: GRPC_TRACE: want it unset" in ended.stderr


def test_metrics_and_probes_hold_nothing(haunted: Haunted) -> None:
    """What everybody may fetch who reaches the port."""
    assert len(haunted.pages) == 4 * 4 * len(PAGES)
    assert all(b"shardhold_" in page for name, page in haunted.pages.items() if name.endswith("/metrics"))
    assert haunted.canaries.find_all(haunted.pages) == {}


def test_errors_hold_nothing(haunted: Haunted) -> None:
    """Texts that callers get with a refusal, and what pilot writes to stderr."""
    assert len(haunted.errors) > 12
    assert sum(bool(text) for text in haunted.errors.values()) > 8
    assert haunted.canaries.find_all(haunted.errors) == {}


@pytest.mark.needs("memory")
def test_processes_show_nothing(haunted: Haunted) -> None:
    """Command lines, environments and names of threads of nexus, keepers and provider."""
    assert len(haunted.shown) == 4 * len(haunted.cluster.dev.names)
    assert all(b"pilot" in content or b"--config" in content for content in haunted.shown.values())
    assert haunted.canaries.find_all(haunted.shown) == {}


@pytest.mark.needs("memory")
def test_pilot_shows_nothing_while_it_runs(haunted: Haunted) -> None:
    """Values and words go in by standard input, and are in no command line and no environment meanwhile."""
    for run in haunted.runs:
        assert any(name.endswith("/cmdline") and content for name, content in run.seen.items())
        assert any(name.endswith("/environ") and content for name, content in run.seen.items())
        assert haunted.canaries.find_all(run.seen) == {}


def test_every_key_is_searched_for(haunted: Haunted) -> None:
    """Those of both root keys, and three sets of shards: of before the rotation, after it, and after the unseal."""
    wanted = {"KEK 2", "KEK 3", "recovery seed", "recovery share 5"}
    wanted |= {f"{name} key {generation}" for name in ("root", "keyring", "control") for generation in (1, 2)}
    wanted |= {f"shard of keeper-{number} in set {of}" for number in (1, 2, 3) for of in (1, 2, 3)}
    assert wanted <= haunted.keys.keys()


def test_every_form_of_every_canary_is_found(haunted: Haunted) -> None:
    """In the middle of a line, too."""
    for name, secret in {"text": TEXT.encode(), "binary": BINARY, **haunted.keys}.items():
        for form, pattern in list_forms(secret):
            assert haunted.canaries.find(b'{"event":"' + pattern + b'"}\n'), f"{name} as {form}"


@pytest.mark.parametrize("folder", ["logs", "data", "audit", "."])
def test_a_planted_one_is_found(haunted: Haunted, folder: str) -> None:
    """A canary is found in a file beside those that were searched, far from its beginning."""
    directory = haunted.cluster.directory
    planted = directory.root / folder / "planted"
    planted.write_bytes(b"noise\n" * 100_000 + b"root key: " + haunted.keys["root key 2"].hex().encode())
    try:
        found = haunted.canaries.find_all(read_tree(directory.root, without=directory.recovery_shares))
    finally:
        planted.unlink()
    assert {name: "root key 2 as hex" in what for name, what in found.items()} == {
        str(planted.relative_to(directory.root)): True
    }


def test_share_cards_are_where_the_words_are(haunted: Haunted) -> None:
    """The search would find words: it does in the cards, which it leaves out elsewhere."""
    shares = haunted.cluster.directory.recovery_shares
    cards = read_tree(shares, without=Path("/nowhere"))
    lined_up = {name: b" ".join(word for word in content.split() if word.isalpha()) for name, content in cards.items()}
    assert len(haunted.canaries.find_all(lined_up)) == 5


def test_refusals_are_refusals(haunted: Haunted) -> None:
    """The errors that were searched are of the nexus, which saw the value, and not of the client before it was sent."""
    assert b"expected" in haunted.errors["conflict"]
    assert b"not allowed" in haunted.errors["denied"] or b"DeniedError" in haunted.errors["denied"]
    assert b"sealed" in haunted.errors["sealed"]
    assert grpc.StatusCode.OK.name not in haunted.errors["a share that is none"].decode()
