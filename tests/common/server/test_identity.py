"""Waiting for the first SVID of a server."""

import contextlib
import threading
from pathlib import Path

import pytest
import structlog

from common.config.config import IdentityOptions
from common.errors import ConfigError, IdentityUnavailableError
from common.server.identity import wait_for_identity
from shardhold.identity import BUNDLE_FILE
from tests.kit.authority import EXPIRED, Authority
from tests.kit.credentials import certify, make_unnamed_authority, write_svid

CA = Authority("example.test")


class Patience:
    """Gives up at the last of some pauses."""

    def __init__(self, pauses: int = 3) -> None:
        self.pauses = 0
        self._most = pauses

    def is_set(self) -> bool:
        return self.pauses >= self._most

    def wait(self, timeout: float | None = None) -> bool:
        self.pauses += 1
        return self.is_set()


def list_watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "shardhold-identity"]


def test_tries_leave_nothing_behind(tmp_path: Path) -> None:
    """A source whose SVID has expired is closed before it is opened again: waiting for days costs no threads."""
    folder = write_svid(tmp_path, certify(CA, uris=["spiffe://example.test/team/app"], valid=EXPIRED))
    options = IdentityOptions(
        trust_domain=CA.trust_domain,
        source="files",
        svid_dir=str(folder),
    )
    before, patience = list_watchers(), Patience()
    with pytest.raises(IdentityUnavailableError, match="expired at"):
        wait_for_identity(options, patience)
    assert patience.pauses == 3
    assert list_watchers() == before


def test_the_first_tries_are_no_reason_to_worry(tmp_path: Path) -> None:
    """A provider that starts at the same time needs a moment; a server without an SVID for seconds warns."""
    options = IdentityOptions(trust_domain=CA.trust_domain, source="files", svid_dir=str(tmp_path))
    with structlog.testing.capture_logs() as lines, pytest.raises(IdentityUnavailableError):
        wait_for_identity(options, Patience(10))
    assert [(line["attempt"], line["log_level"]) for line in lines] == [
        *((attempt, "info") for attempt in (1, 2, 3)),
        (10, "warning"),
    ]


def test_another_trust_domain_is_refused(tmp_path: Path) -> None:
    """An SVID of another trust domain than the configured one is refused without waiting, and its source is closed."""
    folder = write_svid(tmp_path, CA.issue("/shardhold/nexus/n1"))
    before = list_watchers()
    with pytest.raises(ConfigError, match=r"identity\.trust_domain: got 'other\.test', but the SVID is spiffe://"):
        wait_for_identity(
            IdentityOptions(trust_domain="other.test", source="files", svid_dir=str(folder)), threading.Event()
        )
    assert list_watchers() == before


def test_authorities_without_a_name_are_an_option(tmp_path: Path) -> None:
    """A server takes them from a bundle file only if its configuration says that they are of its own trust domain."""
    svid = CA.issue("/shardhold/nexus/n1")
    folder = write_svid(tmp_path, svid)
    (folder / BUNDLE_FILE).write_bytes(svid.bundle_pem + make_unnamed_authority())
    patience = Patience()
    with pytest.raises(IdentityUnavailableError, match="names no trust domain"):
        wait_for_identity(IdentityOptions(CA.trust_domain, source="files", svid_dir=str(folder)), patience)
    allowing = IdentityOptions(CA.trust_domain, source="files", svid_dir=str(folder), unnamed_authorities=True)
    with contextlib.closing(wait_for_identity(allowing, patience)) as source:
        assert len(source.current().bundle()) == 2
