"""SVIDs from files that something else replaces."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509

from shardhold.identity import BUNDLE_FILE, KEY_FILE, SVID_FILE, IdentityUnavailableError, Svid, SvidFiles
from tests.kit.authority import EXPIRED, Authority
from tests.kit.credentials import ALL_FILES, certify, make_unnamed_authority, write_svid

WaitUntil: TypeAlias = Callable[..., None]


class TestSvidFiles:
    """SVIDs from files."""

    def test_follows_replacement(self, ca: Authority, tmp_path: Path, wait_until: WaitUntil) -> None:
        """A new set of files becomes the current SVID, and subscribers are notified."""
        write_svid(tmp_path, ca.issue("/team/app"), *ALL_FILES)
        source = SvidFiles(tmp_path)
        heard: list[Svid] = []
        source.subscribe(lambda: heard.append(source.current()))
        after = ca.issue("/team/app")
        write_svid(tmp_path, after, *ALL_FILES)
        wait_until(lambda: heard)
        assert source.current() == after
        source.close()

    def test_half_written_set(
        self, ca: Authority, tmp_path: Path, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While certificate and key do not belong together the last good set serves; then the new one does."""
        before, after = ca.issue("/team/app"), ca.issue("/team/app")
        write_svid(tmp_path, before, *ALL_FILES)
        source = SvidFiles(tmp_path)
        write_svid(tmp_path, after, SVID_FILE)
        wait_until(lambda: "the private key is not the SVID's" in caplog.text)
        assert source.current() == before
        (tmp_path / BUNDLE_FILE).unlink()
        wait_until(lambda: BUNDLE_FILE in caplog.text)
        assert source.current() == before
        write_svid(tmp_path, after, *ALL_FILES)
        wait_until(lambda: source.current() == after)
        source.close()

    def test_new_authority(
        self, ca: Authority, tmp_path: Path, wait_until: WaitUntil, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A set of another authority is used once its bundle is there too, and not before."""
        before, after = ca.issue("/team/app"), Authority("example.org").issue("/team/app")
        write_svid(tmp_path, before, *ALL_FILES)
        source = SvidFiles(tmp_path)
        write_svid(tmp_path, after, SVID_FILE, KEY_FILE)
        wait_until(lambda: "no authority of the bundle issued the SVID" in caplog.text)
        assert source.current() == before
        write_svid(tmp_path, after, BUNDLE_FILE)
        wait_until(lambda: source.current() == after)
        source.close()

    def test_an_authority_that_names_no_trust_domain(self, ca: Authority, tmp_path: Path) -> None:
        """It may be another domain's that was merged in, and is refused unless the caller knows that it is none."""
        svid, stranger = ca.issue("/team/app"), make_unnamed_authority()
        write_svid(tmp_path, svid, *ALL_FILES)
        (tmp_path / BUNDLE_FILE).write_bytes(svid.bundle_pem + stranger)
        with pytest.raises(IdentityUnavailableError, match="names no trust domain"):
            SvidFiles(tmp_path)
        source = SvidFiles(tmp_path, unnamed_authorities=True)
        assert len(source.current().bundle()) == 2
        source.close()

    @pytest.mark.parametrize("missing", [SVID_FILE, KEY_FILE, BUNDLE_FILE])
    def test_missing_file(self, ca: Authority, tmp_path: Path, missing: str) -> None:
        """A set that is incomplete at the start is refused, and the missing file is named."""
        write_svid(tmp_path, ca.issue("/team/app"), *ALL_FILES)
        (tmp_path / missing).unlink()
        with pytest.raises(IdentityUnavailableError, match=missing):
            SvidFiles(tmp_path)

    @pytest.mark.parametrize("damaged", [SVID_FILE, KEY_FILE, BUNDLE_FILE])
    def test_damaged_file(self, ca: Authority, tmp_path: Path, damaged: str) -> None:
        """A file that is not PEM gives our error and shows nothing of its content."""
        write_svid(tmp_path, ca.issue("/team/app"), *ALL_FILES)
        (tmp_path / damaged).write_bytes(b"canary-of-a-key")
        with pytest.raises(IdentityUnavailableError, match="no usable SVID in") as caught:
            SvidFiles(tmp_path)
        assert "canary" not in str(caught.value)

    def test_readable_key_is_warned_of(self, ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A key that group or others can read works, and a warning names it."""
        write_svid(tmp_path, ca.issue("/team/app"), *ALL_FILES)
        (tmp_path / KEY_FILE).chmod(0o640)
        SvidFiles(tmp_path).close()
        assert f"{tmp_path / KEY_FILE} has mode 0640, want 0600" in caplog.text

    def test_private_key_is_not_warned_of(
        self, ca: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A key that only its owner can read gives no warning."""
        write_svid(tmp_path, ca.issue("/team/app"), *ALL_FILES)
        SvidFiles(tmp_path).close()
        assert caplog.text == ""

    def test_expired(self, ca: Authority, tmp_path: Path) -> None:
        """Files that hold an expired SVID load, and using it says when it expired."""
        write_svid(tmp_path, certify(ca, uris=["spiffe://example.org/team/app"], valid=EXPIRED).parse(), *ALL_FILES)
        source = SvidFiles(tmp_path)
        with pytest.raises(IdentityUnavailableError, match="expired at"):
            source.current()
        source.close()

    def test_intermediates(self, ca: Authority, tmp_path: Path) -> None:
        """The chain is kept in order, leaf first."""
        svid = ca.issue("/team/app")
        write_svid(tmp_path, svid, *ALL_FILES)
        (tmp_path / SVID_FILE).write_bytes(svid.certificates_pem + ca.bundle_pem)
        source = SvidFiles(tmp_path)
        assert source.current().chain() == (svid.leaf(), ca.certificate)
        assert x509.load_pem_x509_certificates(source.current().certificates_pem)[0] == svid.leaf()
        source.close()
