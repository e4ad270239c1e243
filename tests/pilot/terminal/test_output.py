"""Output: nothing binary and nothing that controls a terminal, and the documents that programs read."""

import io
import re
import sys
from collections import Counter

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from pilot.commands.policy_file import parse_policies
from pilot.commands.policy_file import to_document as policy_document
from pilot.commands.secret import to_document as secret_document
from pilot.commands.status import find_exit_code, list_hints, to_document, to_facts, to_row
from pilot.errors import PilotError
from pilot.plain import clean
from pilot.terminal.output import group_hex, print_facts, print_table, show_value, to_text, write_raw
from shardhold.v1 import cluster_pb2, secrets_pb2


class _Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def written_raw(value: bytes, *, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> bytes:
    buffer = io.BytesIO()
    stream = (_Terminal if terminal else io.TextIOWrapper)(buffer, encoding="utf-8", write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    write_raw(value)
    stream.flush()
    return buffer.getvalue()


@pytest.mark.parametrize("value", [b"", b"a", b"a\n", b"\xff\x00", b"\x1b[2J", bytes(range(256))])
def test_pipes_get_values_as_they_are(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value goes to anything but a terminal byte for byte, with no newline added."""
    assert written_raw(value, terminal=False, monkeypatch=monkeypatch) == value


@pytest.mark.parametrize(("value", "shown"), [(b"a", b"a\n"), (b"a\n", b"a\n"), ("é\tx".encode(), "é\tx\n".encode())])
def test_terminals_get_text_with_a_newline(value: bytes, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text on a terminal ends with one newline."""
    assert written_raw(value, terminal=True, monkeypatch=monkeypatch) == shown


@pytest.mark.parametrize("value", [b"\xff", b"\x00", b"\x1b[2J", b"a\rb", "\u202e".encode(), b"\x7f"])
def test_terminals_get_no_binary(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is not text, or would control the terminal, is refused there."""
    with pytest.raises(PilotError, match="binary"):
        written_raw(value, terminal=True, monkeypatch=monkeypatch)


def test_what_servers_say_cannot_steer_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Control characters in facts and tables are replaced."""
    print_facts({"fault": "a\x1b[2Jb"})
    print_table(("name",), [("[red]a\x1b[2Jb",)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[red]a\ufffd[2Jb" in shown
    assert clean("a\nb\tc") == "a\nb\tc"


def test_long_cells_stay_whole_in_pipes(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a table is as wide as its cells, and no line ends with blanks."""
    print_table(("path", "version"), [("x" * 400, "1"), ("y", "2")])
    lines = capsys.readouterr().out.splitlines()
    assert "x" * 400 in lines[2]
    assert all(line == line.rstrip() for line in lines)


def test_table_values() -> None:
    """A table shows text values, and the number of bytes of binary ones."""
    assert show_value(b"hunter2\n") == "hunter2"
    assert show_value(b"\xff\x00") == "<2 bytes>"
    assert show_value(b"\x1b[2J") == "<4 bytes>"
    assert to_text(b"\xff") is None
    assert group_hex(bytes.fromhex("00112233")) == "0011 2233"


STATUS_KEYS = [
    "state",
    "blocked_by",
    "alarms",
    "cluster_id",
    "genesis",
    "generation",
    "shard_threshold",
    "shard_count",
    "set_number",
    "keepers_short",
    "recovery_threshold",
    "recovery_shares",
    "timeline",
    "revision",
    "memory_protection",
    "operation",
    "newer_mark",
    "restored",
    "unseal",
    "keepers",
    "version",
]


def test_status_document_of_nothing() -> None:
    """What does not exist yet is null, and every key is present."""
    document = to_document(cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_UNINITIALISED, version="0.1.0"))
    assert list(document) == STATUS_KEYS
    assert document["state"] == "uninitialised"
    assert document["blocked_by"] == document["alarms"] == document["keepers"] == []
    empty = [key for key, value in document.items() if value is None]
    known = ("state", "blocked_by", "alarms", "restored", "keepers", "version")
    assert empty == [key for key in STATUS_KEYS if key not in known]
    assert to_facts(document) == {"state": "uninitialised", "version": "0.1.0"}


def test_status_document_of_a_cluster() -> None:
    """A status document has the cluster's numbers, bytes as hex, and its keepers."""
    response = cluster_pb2.GetStatusResponse(
        state=cluster_pb2.STATE_RECOVERING,
        blocked_by=["2 of 3 shards of set 7, generation 3"],
        cluster_id=bytes(16),
        genesis=b"\xab" * 32,
        generation=3,
        shard_threshold=3,
        shard_count=5,
        set_number=7,
        recovery_threshold=2,
        recovery_shares=3,
        timeline=1,
        revision=99,
        memory_protection=2,
        operation=cluster_pb2.Operation(kind="init", step="attempt 1 waits for its proof"),
        keepers=[
            cluster_pb2.KeeperStatus(name="k1", address="h:1", reachable=True, holds_current_set=True),
            cluster_pb2.KeeperStatus(name="k2", address="h:2", reachable=True, fault="lies"),
            cluster_pb2.KeeperStatus(name="k3", address="h:3", holds_current_set=True),
        ],
        version="0.1.0",
    )
    document = to_document(response)
    assert document["genesis"] == "ab" * 32
    assert document["operation"] == {"kind": "init", "step": "attempt 1 waits for its proof"}
    assert document["keepers"][1] == {
        "name": "k2",
        "address": "h:2",
        "reachable": True,
        "holds_current_set": False,
        "fault": "lies",
    }
    assert [to_row(keeper)[2:] for keeper in document["keepers"]] == [
        ("held", ""),
        ("not held", "lies"),
        ("unreachable", ""),
    ]
    facts = to_facts(document)
    assert facts["blocked by"] == "2 of 3 shards of set 7, generation 3"
    assert facts["shard set"] == "7: any 3 of 5 keepers"


BLOCKED = cluster_pb2.GetStatusResponse(
    state=cluster_pb2.STATE_RECOVERING,
    blocked_by=["the store is older than a rollback mark"],
    timeline=1,
    revision=17,
    newer_mark=cluster_pb2.NewerMark(
        timeline=1, revision=42, made_at=Timestamp(seconds=1_770_000_000), keepers=["k1", "k3"]
    ),
)
RESTORED = cluster_pb2.GetStatusResponse(
    state=cluster_pb2.STATE_RECOVERING,
    timeline=1,
    revision=17,
    restored=True,
    blocked_by=["store was restored from a backup"],
)
SEALED = cluster_pb2.GetStatusResponse(
    state=cluster_pb2.STATE_SEALED,
    blocked_by=["sealed"],
    unseal=cluster_pb2.UnsealProgress(submitted=0, needed=3),
)
UNAUDITED = cluster_pb2.GetStatusResponse(
    state=cluster_pb2.STATE_RECOVERING,
    blocked_by=["the audit files do not reach line 9: find out why, or 'pilot audit accept-new-chain'"],
)
WAITING = cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_RECOVERING, blocked_by=["2 of 3 shards of set 7"])


def test_status_of_an_older_store() -> None:
    """The newer mark appears with numbers, time and keepers, in the document and for people."""
    document = to_document(BLOCKED)
    made_at = "2026-02-02T02:40:00Z"
    assert document["newer_mark"] == {"timeline": 1, "revision": 42, "made_at": made_at, "keepers": ["k1", "k3"]}
    assert document["unseal"] is None
    assert to_facts(document)["newer mark"] == f"timeline 1, revision 42, made at {made_at}, held by k1, k3"


def test_status_of_an_unseal() -> None:
    """An unseal counts its shares, even when there is none yet."""
    document = to_document(SEALED)
    assert document["unseal"] == {"submitted": 0, "needed": 3}
    assert document["newer_mark"] is None
    assert to_facts(document)["unseal"] == "0 of 3 shares submitted"


@pytest.mark.parametrize(
    ("response", "said"),
    [
        pytest.param(BLOCKED, "'pilot accept-older-store --timeline 1 --revision 17'", id="blocked by a mark"),
        pytest.param(RESTORED, "a superuser accepts it with 'pilot accept-older-store --timeline 1 --", id="restored"),
        pytest.param(SEALED, "custodians bring it back: 'pilot unseal'", id="sealed"),
        pytest.param(UNAUDITED, "put the audit files back", id="blocked by the audit"),
        pytest.param(WAITING, "if the keepers that it waits for do not return", id="too few keepers"),
        pytest.param(cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_READY), "", id="ready"),
        pytest.param(
            cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_UNINITIALISED, blocked_by=["never initialised"]),
            "",
            id="uninitialised",
        ),
    ],
)
def test_status_says_what_to_do(response: cluster_pb2.GetStatusResponse, said: str) -> None:
    """A nexus that does not come back by itself gets one hint, and any other gets none."""
    hints = list_hints(to_document(response))
    assert len(hints) == bool(said)
    assert said in "".join(hints)


def test_secret_document() -> None:
    """Text goes under fields, other bytes under fields_base64, which is present only when needed."""
    response = secrets_pb2.GetSecretResponse(
        path="a/b", version=2, incarnation=b"\1" * 16, fields={"t": b"x", "a": b"y"}
    )
    assert secret_document(response) == {
        "path": "a/b",
        "version": 2,
        "incarnation": "01" * 16,
        "created_at": "1970-01-01T00:00:00Z",
        "fields": {"a": "y", "t": "x"},
    }
    response.fields["b"] = b"\xff"
    assert secret_document(response)["fields_base64"] == {"b": "/w=="}
    assert secret_document(response, only="b")["fields"] == {}
    assert "fields_base64" not in secret_document(response, only="t")


POLICY = """
[[policy]]
name = "app"
spiffe_ids = ["spiffe://example.org/team/app"]
paths = ["team/app/**"]
permissions = ["read", "list"]
"""


def test_policy_file_round_trip() -> None:
    """The policies of a file come back as the same document."""
    (policy,) = parse_policies(POLICY, origin="f")
    assert policy_document(policy) == {
        "name": "app",
        "spiffe_ids": ["spiffe://example.org/team/app"],
        "paths": ["team/app/**"],
        "permissions": ["read", "list"],
    }
    assert len(parse_policies(POLICY + POLICY.replace('"app"', '"b"'), origin="f")) == 2


@pytest.mark.parametrize(
    ("text", "named"),
    [
        pytest.param("", "one or more", id="empty"),
        pytest.param("[policy]\nname='x'", "one or more", id="no list of tables"),
        pytest.param(POLICY.replace("[[policy]]", "x = 1\n[[policy]]"), "nothing else", id="something besides"),
        pytest.param("[[policy]", "f: ", id="no TOML"),
        pytest.param(POLICY + 'deny = ["x"]', r"f: policy\[0\]\.deny: unknown", id="unknown option"),
        pytest.param(POLICY.replace('name = "app"', ""), r"policy\[0\]\.name: want a string", id="no name"),
        pytest.param(POLICY.replace('["read", "list"]', '"read"'), "permissions: want a list", id="no list"),
        pytest.param(POLICY.replace('"list"', '"destroy"'), "got 'destroy', want read, write", id="unknown permission"),
        pytest.param(POLICY * 2, r"f: policy\[1\]\.name: is the name of policy\[0\] too", id="a name twice"),
        pytest.param(POLICY.replace('["team/app/**"]', "[]"), "paths: want a list of strings", id="no path"),
    ],
)
def test_wrong_policy_file_is_named(text: str, named: str) -> None:
    """The error for a wrong policy file names file, policy and option."""
    with pytest.raises(PilotError, match=named):
        parse_policies(text, origin="f")


WIDE_ROWS = [
    pytest.param(
        ("keeper", "address", "shard", "fault"), ("k1", "k1.example.org:8554", "held", "x y " * 30), id="keepers"
    ),
    pytest.param(("path", "version", "written"), ("team/" * 20 + "app", "3", "2026-11-30T08:00:00Z"), id="secrets"),
    pytest.param(
        ("policy", "permissions", "SPIFFE IDs", "paths"),
        ("app", "read, list, write, delete", "spiffe://example.org/team/app, " * 2, "team/app/**"),
        id="policies",
    ),
    pytest.param(("", "check", "what was found", "rule"), ("✓", "keepers", "5 of 5 " * 12, "TOO_YOUNG"), id="checks"),
    pytest.param(
        ("nexus", "timeline", "segments", "lines", "signed through", "hash of the last line"),
        ("nexus-1", "1", "12", "48211", "48200", "ab" * 32),
        id="audit",
    ),
    pytest.param(
        ("KEK", "state", "generation", "verified", "given up"),
        ("3f2a9c1e", "current", "3", "2026-11-30T08:00:00Z", "2026-11-30T08:00:00Z"),
        id="keys",
    ),
    pytest.param(
        ("backup", "created", "generation", "timeline", "revision", "bytes", "fault"),
        (
            "shardhold-20261130T080000Z-00000017.age",
            "2026-11-30T08:00:00Z",
            "3",
            "1",
            "17",
            "20480",
            "its file is not whole",
        ),
        id="backups",
    ),
    pytest.param(("p",), ("x" * 200,), id="one column"),
    pytest.param(tuple("abcdefghijkl"), tuple(["2026-11-30T08:00:00Z"] * 12), id="many columns"),
]


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [50, 80])
@pytest.mark.parametrize(("names", "cells"), WIDE_ROWS)
def test_a_table_fits_its_terminal(
    names: tuple[str, ...], cells: tuple[str, ...], columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is too long, no cell is cut, and none is narrower than one can read."""
    screen = _Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    print_table(names, [cells, cells])
    shown = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue())
    assert max(map(len, shown.splitlines())) <= columns
    missing = Counter("".join(cells * 2)) - Counter(shown)
    missing.pop(" ", None)
    assert not missing
    assert all(name in shown for name in names)


def test_a_row_becomes_facts_where_a_table_would_be_too_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name and value stand side by side, long values wrap, empty ones are left out."""
    screen = _Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "40")
    rows = [
        ("k1", "k1.example.org:8554", "held", ""),
        ("k2", "k2.example.org:8554", "not held", "what it said was wrong"),
    ]
    print_table(("keeper", "address", "shard", "fault"), rows)
    assert screen.getvalue().splitlines() == [
        "keeper   k1",
        "address  k1.example.org:8554",
        "shard    held",
        "",
        "keeper   k2",
        "address  k2.example.org:8554",
        "shard    not held",
        "fault    what it said was wrong",
    ]


def test_facts_wrap_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe a value is one line, however long."""
    facts = {"genesis": group_hex(bytes(range(16))), "id": "x" * 40}
    for stream, shown in (
        (
            _Screen(),
            "genesis  0001 0203 0405 0607\n         0809 0a0b 0c0d 0e0f\nid       "
            + "x" * 21
            + "\n"
            + " " * 9
            + "x" * 19,
        ),
        (io.StringIO(), "genesis  0001 0203 0405 0607 0809 0a0b 0c0d 0e0f\nid       " + "x" * 40),
    ):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setenv("COLUMNS", "30")
        print_facts(facts)
        assert stream.getvalue() == shown + "\n"


@pytest.mark.parametrize(
    ("state", "blocked_by", "code"),
    [
        ("READY", [], 0),
        ("READY", ["audit entries cannot be written"], 7),
        ("SEALED", ["the nexus is sealed"], 6),
        ("RECOVERING", ["0 of 3 shards"], 7),
        ("UNINITIALISED", [], 8),
        ("INITIALISING", [], 8),
    ],
)
def test_what_a_status_is_as_an_exit_code(state: str, blocked_by: list[str], code: int) -> None:
    """Only a nexus that serves calls is a success."""
    response = cluster_pb2.GetStatusResponse(state=cluster_pb2.State.Value(f"STATE_{state}"), blocked_by=blocked_by)
    assert find_exit_code(to_document(response)) == code
