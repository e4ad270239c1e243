"""`pilot secret` before a real nexus: what is written, what is left, and what is asked before anything goes."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import NotScrubbedError
from common.server.edge import Call, GrpcServer, Method
from shardhold.v1 import secrets_pb2 as pb
from tests.kit.authority import Authority
from tests.kit.credentials import write_svid
from tests.kit.fixed_identity import FixedIdentity
from tests.pilot.served_nexus import ServedNexus, run_here

PATH = "team/app/db"


@pytest.fixture
def secret(served: ServedNexus) -> ServedNexus:
    """A nexus with a secret of three versions."""
    for number in (1, 2, 3):
        put(served, f"v{number}".encode())
    return served


def put(served: ServedNexus, value: bytes, *options: str) -> None:
    told = served.pilot("secret", "put", PATH, "password=-", *options, stdin=value)
    assert (told.code, told.err) == (0, "")


def load(served: ServedNexus, *command: str) -> Any:
    """Return what a command says as JSON."""
    told = served.pilot("secret", *command, "-o", "json")
    assert (told.code, told.err) == (0, "")
    return json.loads(told.out)


def get_fields(served: ServedNexus) -> Any:
    return load(served, "get", PATH)["fields"]


def get_states(served: ServedNexus) -> dict[int, str]:
    return {one["version"]: one["state"] for one in load(served, "versions", PATH)["versions"]}


def test_put_says_that_it_replaces_all_fields(served: ServedNexus) -> None:
    """Whoever meant to set one of several fields sees it at once."""
    told = served.pilot("secret", "put", PATH, "a=-", "b=@/dev/null", "--allow-empty", stdin=b"1")
    assert told.out.splitlines()[-1] == "fields       a, b, and no others"
    put(served, b"x")
    assert get_fields(served) == {"password": "x"}


def test_fields_are_asked_for_at_a_terminal(served: ServedNexus) -> None:
    """What is typed is not shown, by name or with `field=-`."""
    script = [("user: ", "ann"), ("once more: ", "ann"), ("password: ", "hunter2"), ("once more: ", "hunter2")]
    told = served.at_terminal("secret", "put", PATH, "user", "password=-", script=script)
    assert told.code == 0
    assert "hunter2" not in told.err
    assert get_fields(served) == {"user": "ann", "password": "hunter2"}


@pytest.mark.parametrize(
    ("option", "content"),
    [
        pytest.param("--json", b'{"user": "ann", "note": "a\\nb\\n"}', id="JSON"),
        pytest.param("--env-file", b"# who\nuser=ann\nnote=a b\n", id="env file"),
    ],
)
def test_fields_come_from_a_file(served: ServedNexus, tmp_path: Path, option: str, content: bytes) -> None:
    """Or from standard input, and beside single ones."""
    file = tmp_path / "fields"
    file.write_bytes(content)
    assert served.pilot("secret", "put", PATH, option, file).code == 0
    from_file = get_fields(served)
    assert from_file["user"] == "ann"
    assert (
        served.pilot("secret", "put", PATH, "extra=@/dev/null", "--allow-empty", option, "-", stdin=content).code == 0
    )
    assert get_fields(served) == from_file | {"extra": ""}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(("put", PATH, "a=-", "--json", "-"), "standard input is given twice", id="standard input twice"),
        pytest.param(("put", PATH, "a=-"), "standard input: is empty", id="empty"),
        pytest.param(("put", PATH, "a"), "there is no terminal to ask on", id="nobody to ask"),
        pytest.param(("put", PATH, "--json", "/nonexistent"), "/nonexistent: No such file", id="no file"),
        pytest.param(("put", PATH, "-", "--keep-newline", "--strip-newline"), "got both, want one", id="both"),
        pytest.param(("patch", PATH), "there is nothing to change", id="no patch"),
        pytest.param(("undelete", PATH), "missing option '--version'", id="no version"),
        pytest.param(("destroy", PATH), "there is no terminal to ask on", id="destroy without a terminal"),
        pytest.param(
            ("metadata", "set", PATH, "--max-versions", "1000001"), "less than or equal to 1000000", id="many"
        ),
    ],
)
def test_a_wrong_command_changes_nothing(secret: ServedNexus, arguments: tuple[str, ...], error: str) -> None:
    """Exit code 2, and what is wrong."""
    told = secret.pilot("secret", *arguments)
    assert told.code == 2
    assert error in told.err
    assert get_states(secret) == {3: "live", 2: "live", 1: "live"}


def test_a_newline_of_a_pipe_warns_and_is_taken_off_when_asked(served: ServedNexus) -> None:
    """`echo` is caught before the first service wonders about its password."""
    told = served.pilot("secret", "put", PATH, "-", stdin=b"x\n")
    assert told.err.startswith("pilot: warning: standard input ends with a newline")
    assert get_fields(served) == {"value": "x\n"}
    put(served, b"x\n", "--strip-newline")
    assert get_fields(served) == {"password": "x"}
    put(served, b"x\n", "--keep-newline")
    assert get_fields(served) == {"password": "x\n"}


def test_patch_sets_and_takes_out(secret: ServedNexus) -> None:
    """What it does not name stays; check-and-set as with put."""
    assert secret.pilot("secret", "patch", PATH, "user=-", stdin=b"ann").code == 0
    assert get_fields(secret) == {"password": "v3", "user": "ann"}
    assert load(secret, "patch", PATH, "--remove", "password", "--expected-version", "4")["version"] == 5
    assert get_fields(secret) == {"user": "ann"}
    told = secret.pilot("secret", "patch", PATH, "--remove", "user", "--expected-version", "4")
    assert told.code == 1
    told = secret.pilot("secret", "patch", "team/none", "user=-", stdin=b"ann")
    assert told.code == 3


def test_versions_are_listed(secret: ServedNexus) -> None:
    """With their state and their times, the newest first."""
    assert secret.pilot("secret", "delete", PATH, "--version", "2").code == 0
    assert secret.pilot("secret", "destroy", PATH, "--version", "1", "--yes").code == 0
    document = load(secret, "versions", PATH)
    assert [(one["version"], one["state"]) for one in document["versions"]] == [
        (3, "live"),
        (2, "deleted"),
        (1, "destroyed"),
    ]
    assert document["current_version"] == 3
    assert [one["destroyed_at"] is not None for one in document["versions"]] == [False, False, True]
    assert all(one["created_at"].startswith("20") for one in document["versions"])
    lines = secret.pilot("secret", "versions", PATH).out.splitlines()
    assert lines[0] == f"path  {PATH}"
    assert lines[1].startswith("kept  ")
    assert [line.split()[:2] for line in lines[5:]] == [["3", "live"], ["2", "deleted"], ["1", "destroyed"]]
    assert secret.pilot("secret", "versions", "team/none").code == 3


def test_a_deleted_version_comes_back(secret: ServedNexus) -> None:
    """As it was."""
    assert load(secret, "delete", PATH, "--version", "3", "--version", "1")["versions"] == [1, 3]
    told = secret.pilot("secret", "get", PATH)
    assert told.code == 3
    assert "2" in told.err
    assert load(secret, "undelete", PATH, "--version", "3")["versions"] == [3]
    assert get_fields(secret) == {"password": "v3"}
    told = secret.pilot("secret", "undelete", PATH, "--version", "3")
    assert told.code == 3


def test_get_tells_when_a_version_was_written(secret: ServedNexus) -> None:
    """In JSON as in the table."""
    document = load(secret, "get", PATH, "--version", "1")
    written = next(one for one in load(secret, "versions", PATH)["versions"] if one["version"] == 1)
    assert document["created_at"] == written["created_at"]


def test_a_list_shows_the_newest_version_that_is_left(secret: ServedNexus) -> None:
    """Or that none is."""
    for path in ("team/app/whole", "team/app/gone"):
        assert secret.pilot("secret", "put", path, "-", stdin=b"x").code == 0
    assert secret.pilot("secret", "delete", "team/app/gone").code == 0
    assert secret.pilot("secret", "delete", PATH, "--version", "3").code == 0
    lines = secret.pilot("secret", "list", "team").out.splitlines()
    assert [line.rsplit(maxsplit=1)[0].split(maxsplit=1) for line in lines[2:]] == [
        [PATH, "2 (3 is deleted)"],
        ["team/app/gone", "deleted"],
        ["team/app/whole", "1"],
    ]
    found = [(one["current_version"], one["newest_live_version"]) for one in load(secret, "list")]
    assert found == [(3, 2), (1, None), (1, 1)]


@pytest.mark.parametrize("command", ["delete", "destroy"])
def test_the_path_is_asked_for_before_everything_goes(secret: ServedNexus, command: str) -> None:
    """Another answer leaves all as it was."""
    told = secret.at_terminal("secret", command, PATH, script=[("type its path: ", "team/app/DB")])
    assert told.code == 1
    assert "pilot: error: not confirmed: nothing was " in told.err
    assert get_states(secret) == {3: "live", 2: "live", 1: "live"}
    told = secret.at_terminal("secret", command, PATH, script=[("type its path: ", PATH)])
    assert told.code == 0
    assert set(get_states(secret).values()) == {"deleted" if command == "delete" else "destroyed"}


def test_what_can_be_undone_is_not_asked_about(secret: ServedNexus) -> None:
    """Some versions, `--yes`, and a script, which has no terminal."""
    assert secret.at_terminal("secret", "delete", PATH, "--version", "1", script=[]).code == 0
    assert secret.at_terminal("secret", "delete", PATH, "--yes", script=[]).code == 0
    assert get_states(secret) == {3: "deleted", 2: "deleted", 1: "deleted"}
    assert secret.pilot("secret", "undelete", PATH, "--version", "1").code == 0
    assert secret.pilot("secret", "delete", PATH).code == 0


def test_destroying_one_version_is_asked_about_too(secret: ServedNexus) -> None:
    """Nothing brings it back."""
    told = secret.at_terminal("secret", "destroy", PATH, "--version", "2", script=[("type its path: ", PATH)])
    assert told.code == 0
    assert f"This destroys version 2 of {PATH}" in told.err
    assert get_states(secret) == {3: "live", 2: "destroyed", 1: "live"}


def test_how_many_versions_are_kept_is_set_and_shown(secret: ServedNexus) -> None:
    """What is more goes at once; 0 leaves it to the configuration again."""
    kept = load(secret, "metadata", "get", PATH)
    assert kept["max_versions_is_own"] is False
    told = secret.pilot("secret", "metadata", "set", PATH, "--max-versions", "2")
    assert told.out.splitlines()[:2] == [f"path          {PATH}", "max_versions  2"]
    assert list(get_states(secret)) == [3, 2]
    lines = secret.pilot("secret", "metadata", "get", PATH).out.splitlines()
    assert lines == [f"path            {PATH}", "newest version  3", "kept            at most 2 versions"]
    assert load(secret, "metadata", "set", PATH, "--max-versions", "0")["max_versions"] == 0
    assert load(secret, "metadata", "get", PATH) == kept


def test_the_path_is_asked_for_before_versions_are_destroyed_by_a_limit(secret: ServedNexus) -> None:
    """At a terminal; a limit of the configuration, 0, is nothing to ask about."""
    command = ("secret", "metadata", "set", PATH, "--max-versions")
    told = secret.at_terminal(*command, "1", script=[("type its path: ", "")])
    assert told.code == 1
    assert "pilot: error: not confirmed: nothing was changed\n" in told.err
    assert secret.at_terminal(*command, "0", script=[]).code == 0
    assert list(get_states(secret)) == [3, 2, 1]
    told = secret.at_terminal(*command, "1", script=[("type its path: ", PATH)])
    assert (told.code, list(get_states(secret))) == (0, [3])
    assert secret.pilot("secret", "metadata", "get", PATH).out.endswith("at most 1 version\n")


@pytest.mark.parametrize(("failures", "code"), [(2, 0), (3, 5)])
def test_what_is_destroyed_is_scrubbed_by_the_same_request_again(
    ca: Authority, tmp_path: Path, failures: int, code: int
) -> None:
    """A few times; after that the error says that the files may have it yet."""
    seen: list[bytes] = []

    def destroy(call: Call, request: pb.DestroySecretRequest) -> pb.DestroySecretResponse:
        seen.append(request.request_id)
        if len(seen) <= failures:
            raise NotScrubbedError("the versions are destroyed, but the files may have them yet")
        return pb.DestroySecretResponse(versions=[1], revision=7)

    name = "/shardhold.v1.SecretService/DestroySecret"
    method = Method(name, pb.DestroySecretRequest, pb.DestroySecretResponse, destroy)
    identity = FixedIdentity(ca.issue("/shardhold/nexus/n1", dns="nexus.shardhold"))
    server = GrpcServer([method], address="127.0.0.1:0", identity=identity, trust_domain=ca.trust_domain)
    address = f"127.0.0.1:{server.start()}"
    svid = write_svid(tmp_path / "alice", ca.issue("/shardhold/pilot/role/superuser/alice"))
    reach = ["--address", address, "--svid-dir", str(svid)]
    told = run_here(["secret", "destroy", PATH, "--yes", *reach], stdin=io.TextIOWrapper(io.BytesIO()))
    server.stop(0)
    assert told.code == code
    assert ("files may have them yet" in told.err) is bool(code)
    assert (len(seen), len(set(seen))) == (3, 1)
