"""Requests that are sent again, whatever became of what they made, and other requests under a used id."""

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from common.clock import to_micros
from common.errors import CorruptRowError, InvalidArgumentError, NotFoundError
from common.forms.codec import fields, u64
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import MadeByRequest, RequestRow
from nexus.vault.expected import Expected
from tests.nexus.cluster import tamper
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, NexusCore, identify

ANY = Expected()
PATH = "team/app/db"
OTHER = identify("team/other")
TEAM = Policy(
    name="team", spiffe_ids=("spiffe://example.org/team/*",), paths=("team/**",), permissions=tuple(Permission)
)
USED = "request_id: was used for another request, want a new one"
Send = Callable[[NexusCore, bytes], MadeByRequest]


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may do everything below team/."""
    return make_nexus(TEAM)


def put(value: bytes = b"v", expected: Expected = ANY, *, path: str = PATH, **more: bytes) -> Send:
    return lambda nexus, request_id: nexus.vault.put(APP, path, {**more, "value": value}, expected, request_id)


def delete(*versions: int, expected: Expected = ANY, path: str = PATH) -> Send:
    return lambda nexus, request_id: nexus.vault.delete(APP, path, versions, expected, request_id)


def list_values(nexus: NexusCore, *, path: str = PATH) -> list[bytes]:
    """Read every live version, the oldest first."""
    with nexus.store.read() as reader:
        versions = reader.load_live_versions(path)
    return [nexus.vault.get(APP, path, version).fields["value"] for version in versions]


def load(nexus: NexusCore, request_id: bytes, *, caller: str = APP.spiffe_id) -> RequestRow:
    with nexus.store.read() as reader:
        row = reader.find_request(caller, request_id)
    assert row is not None
    return row


def test_a_delete_that_is_sent_again_spares_what_was_put_since(nexus: NexusCore) -> None:
    """A delete, a put and the delete again leave what was put, and the delete answers as the first time."""
    put(b"old")(nexus, os.urandom(16))
    request_id = os.urandom(16)
    first = delete()(nexus, request_id)
    put(b"new")(nexus, os.urandom(16))
    assert delete()(nexus, request_id) == first
    assert list_values(nexus) == [b"new"]


def test_a_put_that_is_sent_again_does_not_come_back_over_a_newer_incarnation(nexus: NexusCore) -> None:
    """A put, a delete of everything, another put and the first again leave the other put alone."""
    request_id = os.urandom(16)
    first = put(b"old")(nexus, request_id)
    delete()(nexus, os.urandom(16))
    assert put(b"old")(nexus, request_id) == first
    with pytest.raises(NotFoundError):
        nexus.vault.get(APP, PATH, 0)
    put(b"new")(nexus, os.urandom(16))
    assert put(b"old")(nexus, request_id) == first
    assert list_values(nexus) == [b"new"]


@pytest.mark.parametrize(
    ("first", "other"),
    [
        pytest.param(put(b"v"), put(b"w"), id="another value"),
        pytest.param(put(b"v"), put(b""), id="an empty value"),
        pytest.param(put(b"v"), put(b"v", more=b""), id="a field more"),
        pytest.param(put(b"v", ab=b"c"), put(b"v", a=b"bc"), id="the border between name and value"),
        pytest.param(put(b"v"), put(b"v", path="team/app/other"), id="another path"),
        pytest.param(put(), put(expected=Expected(1)), id="an expected version more"),
        pytest.param(put(expected=Expected(1)), put(expected=Expected(2)), id="another expected version"),
        pytest.param(
            put(expected=Expected(1)), put(expected=Expected(1, b"i" * 16)), id="an expected incarnation more"
        ),
        pytest.param(put(path="team/new"), put(expected=Expected(0), path="team/new"), id="must not exist, or may"),
        pytest.param(put(), delete(), id="a delete of the same path"),
        pytest.param(delete(), put(), id="a put to the same path"),
        pytest.param(delete(1), delete(), id="all versions for one"),
        pytest.param(delete(), delete(1), id="one version for all"),
        pytest.param(delete(1), delete(expected=Expected(1)), id="an expected version of a delete"),
    ],
)
def test_another_request_under_a_used_id_is_refused(nexus: NexusCore, first: Send, other: Send) -> None:
    """It is refused as an argument, changes nothing, and does not get the answer of the first."""
    put(b"before")(nexus, os.urandom(16))
    request_id = os.urandom(16)
    made = first(nexus, request_id)
    before = list_values(nexus), list_values(nexus, path="team/new")
    with pytest.raises(InvalidArgumentError, match=USED):
        other(nexus, request_id)
    assert (list_values(nexus), list_values(nexus, path="team/new")) == before
    assert first(nexus, request_id) == made


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(put(b"v", a=b"1", b=b"2"), put(b"v", b=b"2", a=b"1"), id="fields in another order"),
        pytest.param(delete(1, 2), delete(2, 1), id="versions in another order"),
        pytest.param(delete(1, 2), delete(1, 2, 2), id="a version twice"),
    ],
)
def test_the_order_in_which_a_request_names_things_is_no_difference(nexus: NexusCore, first: Send, again: Send) -> None:
    """A request is the same however the client has sorted its fields and versions."""
    for value in (b"1", b"2", b"3"):
        put(value)(nexus, os.urandom(16))
    request_id = os.urandom(16)
    assert first(nexus, request_id) == again(nexus, request_id)


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("generation = generation + 1, mac = zeroblob(32)", id="another generation"),
        pytest.param("mac = NULL, generation = 0", id="kept by a program that knew no HMAC"),
    ],
)
def test_without_the_key_of_its_hmac_a_request_is_known_by_caller_rpc_and_path(
    nexus: NexusCore, tmp_path: Path, sql: str
) -> None:
    """A repetition makes nothing new, and a request of another path or RPC is refused all the same."""
    request_id = os.urandom(16)
    first = put(b"v")(nexus, request_id)
    tamper(tmp_path, f"UPDATE requests SET {sql} WHERE request_id = ?", request_id)
    assert put(b"v")(nexus, request_id) == first
    for other in (put(path="team/other"), delete()):
        with pytest.raises(InvalidArgumentError, match=USED):
            other(nexus, request_id)
    assert list_values(nexus) == [b"v"]


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("versions = ''", id="no version"),
        pytest.param("versions = 'x'", id="no number"),
        pytest.param("versions = '-1'", id="below zero"),
        pytest.param("versions = '1  2'", id="a gap"),
        pytest.param("versions = '9223372036854775807'", id="a version that nobody counted to"),
        pytest.param("versions = '" + "9" * 5000 + "'", id="a version beyond all numbers"),
        pytest.param("versions = CAST(x'ff' AS TEXT)", id="no text"),
        pytest.param("revision = -1", id="a revision below zero"),
        pytest.param("generation = 1 << 62", id="a generation that nobody counted to"),
    ],
)
def test_a_damaged_row_stops_the_request_and_makes_nothing_again(nexus: NexusCore, tmp_path: Path, sql: str) -> None:
    """What cannot be read is an error: it is never taken for a request that was not made yet."""
    request_id = os.urandom(16)
    put(b"v")(nexus, request_id)
    tamper(tmp_path, f"UPDATE requests SET {sql} WHERE request_id = ?", request_id)
    with pytest.raises(CorruptRowError):
        put(b"v")(nexus, request_id)
    assert list_values(nexus) == [b"v"]


def test_the_hmac_is_of_the_whole_request(nexus: NexusCore) -> None:
    """The stored HMAC is what an independent implementation makes of the request and the root key's request key."""
    request_id = os.urandom(16)
    put(b"v1")(nexus, os.urandom(16))
    made = put(b"v2", Expected(1), a=b"1")(nexus, request_id)
    root_key = nexus.lifecycle.require_serving().root_key
    info = fields(b"shardhold-root-v1", b"request", root_key.cluster_id, u64(1))
    key = HKDFExpand(SHA256(), 32, info).derive(bytes(root_key.view))
    content = hashlib.sha256(fields(b"a", b"1", b"value", b"v2")).digest()
    asked = (request_id, APP.spiffe_id.encode(), b"PutSecret", PATH.encode(), u64(1), b"", content)
    mac = hmac.digest(key, fields(b"shardhold-request-v1", *asked), "sha256")
    row = RequestRow(request_id, APP.spiffe_id, "PutSecret", PATH, 1, mac, made, made_at=to_micros(nexus.clock.now()))
    assert load(nexus, request_id) == row


def test_equal_values_are_not_told_by_their_requests(nexus: NexusCore) -> None:
    """Two puts of one value have different HMACs, whoever makes them: nobody can compare a value with a guess."""
    ids = [os.urandom(16) for _ in range(3)]
    for request_id in ids[:2]:
        put(b"same")(nexus, request_id)
    nexus.vault.put(OTHER, PATH, {"value": b"same"}, ANY, ids[2])
    nexus.vault.put(OTHER, PATH, {"value": b"same"}, ANY, ids[0])
    rows = [load(nexus, ids[0]), load(nexus, ids[1])]
    rows += [load(nexus, request_id, caller=OTHER.spiffe_id) for request_id in (ids[2], ids[0])]
    assert len({row.mac for row in rows}) == 4


def test_a_request_that_failed_is_made_when_it_is_sent_again(nexus: NexusCore) -> None:
    """Only what made something is kept: a conflict of then is none of now."""
    request_id = os.urandom(16)
    send = partial(put(b"v2", Expected(1)), nexus, request_id)
    with pytest.raises(Exception, match="expected version 1, current is 0"):
        send()
    put(b"v1")(nexus, os.urandom(16))
    assert send().versions == (2,)


def test_a_repetition_leaves_an_entry_that_says_so(nexus: NexusCore) -> None:
    """The entry of a repeated request is like that of a read, also when the secret is gone."""
    request_id = os.urandom(16)
    put(b"v")(nexus, request_id)
    delete()(nexus, os.urandom(16))
    put(b"v")(nexus, request_id)
    (entry,) = nexus.list_entries()
    assert (entry.action, entry.outcome, entry.detail) == ("secret.write", "ok", "repeated request")
