"""Custodians at terminals of their own, all at once, and among them some who type or send what is no share."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from common.keys import words as slip39
from common.keys.words import encode_share
from pilot.dev.directory import Plan
from pilot.dev.identities import Identity, custodian_path
from tests.kit.cluster import Cluster, running
from tests.kit.refusal import Refusal
from tests.kit.transcript import Transcript, run_at_terminal

pytestmark = [pytest.mark.cluster, pytest.mark.destructive]

APP, PATH, FIELDS = "/terminals/app", "terminals/secret", {"value": b"behind five locks"}
NO_WORD_YET = "\x1b[K0 of 33 words: "  # and not 10, 20 or 30
CTRL_C = "\x03"
NOT_OURS = "no share of this cluster's recovery key"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Sealed, recovery 3 of 5, with a secret."""
    with running(tmp_path / "dev", Plan(keepers=2, threshold=2)) as cluster:
        cluster.allow(APP, ["terminals/**"], ["read", "write"])
        cluster.workload(APP).put(PATH, FIELDS)
        cluster.superuser.seal()
        yield cluster


class Room:
    """Where custodians sit, each at a terminal and with an SVID of their own."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def type_all(self, typed: dict[int, list[str]]) -> dict[int, Transcript]:
        """Have custodians type words, all at the same time, and more as they are asked again; return what they saw."""
        identities = {number: Identity(path=custodian_path(number)) for number in typed}
        for identity in identities.values():
            self._cluster.dev.add_identity(identity)
        with ThreadPoolExecutor(len(typed)) as pool:
            told = pool.map(lambda number: self._type(identities[number], typed[number]), typed)
            return dict(zip(typed, told, strict=True))

    def _type(self, identity: Identity, typed: list[str]) -> Transcript:
        script = [("Are they the same? Type yes or no: ", "yes"), *((NO_WORD_YET, words) for words in typed)]
        return run_at_terminal("unseal", script=script, environ=self._cluster.dev.variables(identity))


def test_shares_from_many_terminals_mixed_with_junk(cluster: Cluster) -> None:
    """Each share is judged alone, whoever sends it; the three right ones open, and nothing else does."""
    room, right = Room(cluster), cluster.words
    foreign = slip39.split(os.urandom(32), 3, 5)
    opener = cluster.custodian(5)
    session = opener.start_unseal()  # whoever opens it needs no share

    told = room.type_all({1: [right[0]], 2: [foreign[1], CTRL_C], 3: [foreign[2], CTRL_C], 4: [right[3]]})
    assert {number: transcript.code for number, transcript in told.items()} == {1: 0, 2: 130, 3: 130, 4: 0}, told
    for number in (2, 3):
        assert f"not accepted: {NOT_OURS}" in told[number].err
    assert cluster.superuser.get_status().unseal.submitted == 2

    for wire in (os.urandom(66), encode_share(foreign[0])):
        with Refusal(grpc.StatusCode.INVALID_ARGUMENT, "WORDS", says=NOT_OURS):
            opener.submit(opener.seal_share(session.session_id, wire))
    with Refusal(grpc.StatusCode.FAILED_PRECONDITION, "WRONG_STATE", says="share 1 was submitted before"):
        opener.submit_words(session.session_id, right[0])
    assert cluster.superuser.get_status().unseal.submitted == 2
    assert not cluster.dev.is_ready()

    told |= room.type_all({2: [foreign[3], right[1]]})
    assert told[2].code == 0
    assert f"not accepted: {NOT_OURS}" in told[2].err
    cluster.wait_ready()
    assert cluster.workload(APP).get(PATH).fields == FIELDS
    said = "".join(transcript.err + transcript.out for transcript in told.values())
    said += cluster.directory.log("nexus").read_text()
    assert not [words for words in (*right, *foreign) if " ".join(words.split()[:3]) in said]
