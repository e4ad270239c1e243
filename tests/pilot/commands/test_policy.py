"""`pilot policy` before a real nexus: apply, get, list, delete and explain."""

import json
from pathlib import Path
from typing import Any

import pytest

from pilot.commands.policy_file import parse_policies, render_policies, to_document
from pilot.errors import PilotError
from shardhold.v1 import policies_pb2 as pb
from tests.nexus.cluster import tamper
from tests.pilot.served_nexus import ServedNexus

APP = "spiffe://example.org/team/app"
AUDITOR = "/shardhold/pilot/role/auditor/dan"
LONG = "a-path-so-long/that-the-list-has-a-line-for-each/of-its-strings-and-not-one-for-all"
FILE = f"""\
[[policy]]
name = "app"
spiffe_ids = ["{APP}"]
paths = [
    "team/app/**",
    "shared/*",
    "{LONG}",
]
permissions = ["read", "list"]
"""


def apply(served: ServedNexus, text: str = FILE) -> dict[str, Any]:
    told = served.pilot("policy", "apply", "-", "-o", "json", stdin=text.encode())
    assert told.code == 0, told.err
    return dict(json.loads(told.out))


def test_what_is_in_force_is_told_as_unchanged(served: ServedNexus) -> None:
    """The second time nothing is applied, and the revision is the same."""
    first = apply(served)
    assert (first["applied"], first["unchanged"], first["warnings"]) == (["app"], [], [])
    told = served.pilot("policy", "apply", "-", stdin=FILE.encode())
    assert told.out.splitlines() == ["applied    none", "unchanged  app", f"revision   {first['revision']}"]
    both = FILE.replace("shared/*", "other") + FILE.replace('"app"', '"new"')
    third = apply(served, both + FILE.replace('"app"', '"superusers2"'))
    assert third["applied"] == ["app", "new", "superusers2"]


def test_a_policy_for_another_trust_domain_warns(served: ServedNexus) -> None:
    """On stderr, and in the document; it is applied all the same."""
    text = FILE.replace("example.org", "exmaple.org")
    warning = "policy app: spiffe://exmaple.org/team/app is of another trust domain than example.org: no caller has it"
    told = served.pilot("policy", "apply", "-", stdin=text.encode())
    assert (told.code, told.err) == (0, f"pilot: warning: {warning}\n")
    assert "applied    app\n" in told.out
    assert apply(served, text)["warnings"] == [warning]


def test_apply_takes_back_what_list_and_get_wrote(served: ServedNexus) -> None:
    """Byte for byte the file of one policy, and of all, by whoever may list them."""
    apply(served)
    assert served.pilot("policy", "get", "app", "-o", "toml", who=AUDITOR).out == FILE
    listed = served.pilot("policy", "list", "-o", "toml", who=AUDITOR).out
    assert FILE in listed
    again = apply(served, listed)
    assert (again["applied"], again["unchanged"]) == ([], ["app", "superusers"])


def test_more_policies_than_a_request_takes_are_applied(served: ServedNexus) -> None:
    """In several requests; when a later one is refused, the error says how far it came."""
    many = "\n".join(FILE.replace('"app"', f'"p{number:03}"') for number in range(250))
    assert len(apply(served, many)["applied"]) == 250
    listed = served.pilot("policy", "list", "-o", "toml").out
    assert len(apply(served, listed)["unchanged"]) == 251
    wrong = many + FILE.replace("team/app/**", "a/**b")
    told = served.pilot("policy", "apply", "-", stdin=wrong.encode())
    assert told.code == 2
    assert told.err.startswith(
        "pilot: error: policy app: paths[0]: segment 2 is '**b', want '**' only as a whole segment"
    )
    assert "pilot: hint: the first 200 policies are applied" in told.err


def test_one_policy(served: ServedNexus) -> None:
    """As a table and as JSON; one that is not there has the exit code of what is not found."""
    apply(served)
    document = json.loads(served.pilot("policy", "get", "app", "-o", "json").out)
    assert document == to_document(parse_policies(FILE, origin="")[0])
    lines = served.pilot("policy", "get", "app").out.splitlines()
    assert [line.split() for line in lines[2:]] == [["app", "read", "list", APP, "team/app/**"], ["shared/*"], [LONG]]
    told = served.pilot("policy", "get", "absent")
    assert (told.code, told.err) == (3, "pilot: error: no policy absent\n")


def test_a_damaged_policy_is_named(served: ServedNexus, tmp_path: Path) -> None:
    """By list in each form, and by get."""
    apply(served)
    tamper(tmp_path, "UPDATE control SET body = x'7b7d' WHERE name = 'app'")
    apply(served, FILE.replace('"app"', '"other"'))
    for form in ("table", "toml"):
        told = served.pilot("policy", "list", "-o", form)
        assert told.code == 0
        assert told.err.startswith(
            "pilot: warning: policy app was changed outside Shardhold; no workload is authorised"
        )
    told = served.pilot("policy", "get", "app")
    assert told.code == 1
    assert told.err.startswith("pilot: error: policy app was changed outside Shardhold\n")


@pytest.mark.parametrize(
    ("action", "path", "allowed", "why"),
    [
        pytest.param("read", "team/app/db", True, "allowed by policy app", id="allowed"),
        pytest.param(
            "read", "x", False, f"no policy allows it: {APP} has read only on other paths, by policy app", id="path"
        ),
        pytest.param(
            "write",
            "team/app/db",
            False,
            f"no policy allows it: {APP} has other permissions than write, by policy app",
            id="permission",
        ),
    ],
)
def test_access_is_explained(served: ServedNexus, action: str, path: str, allowed: bool, why: str) -> None:
    """The question is answered with 0; for scripts --exit-code makes 4 of a denial."""
    apply(served)
    command = ("policy", "explain", "--as", APP, action, path)
    told = served.pilot(*command, who=AUDITOR)
    assert (told.code, told.out) == (0, f"allowed  {'yes' if allowed else 'no'}\nwhy      {why}\n")
    told = served.pilot(*command, "--exit-code", "-o", "json")
    assert told.code == (0 if allowed else 4)
    assert json.loads(told.out) == {"allowed": allowed, "policies": ["app"] if allowed else [], "why": why}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(("explain", "--as", APP, "eat", "x"), "'eat' is not one of 'read', 'write',", id="no action"),
        pytest.param(("explain", "--as", "spiffe://example.org/*", "read", "x"), "spiffe_id: got", id="a glob"),
        pytest.param(("explain", "--as", APP, "read", "../x"), "path: segment 1 is '..'", id="no path"),
        pytest.param(("explain", "read", "x"), "missing option '--as'", id="nobody"),
        pytest.param(("delete", "app", "-o", "toml"), "--output: got toml, want table or json", id="no TOML"),
        pytest.param(("get", "No Name"), "policy name: got 'No Name'", id="no name"),
    ],
)
def test_a_wrong_question_is_a_usage_error(served: ServedNexus, arguments: tuple[str, ...], error: str) -> None:
    """Exit code 2, and what is wrong."""
    told = served.pilot("policy", *arguments)
    assert told.code == 2
    assert error in told.err


def test_what_a_nexus_says_is_quoted() -> None:
    """A name with quotes, line ends or what controls a terminal is read back as it was, from plain text."""
    nasty = 'a"b\\c\n\x1b[2J\x7f\u202e\U000e0001é'
    policy = pb.Policy(name=nasty, spiffe_ids=[nasty, "x"], paths=[nasty], permissions=[pb.PERMISSION_READ])
    text = render_policies([to_document(policy)])
    assert all(one.isprintable() or one == "\n" for one in text)
    assert parse_policies(text, origin="f") == [policy]


def test_a_permission_of_a_newer_nexus_is_not_left_out() -> None:
    """The file would take it away when it is applied."""
    policy = pb.Policy(name="p", spiffe_ids=["x"], paths=["x"], permissions=[99])  # type: ignore[list-item]
    with pytest.raises(PilotError, match=r"policy p: has the permission unknown \(99\)"):
        render_policies([to_document(policy)])
