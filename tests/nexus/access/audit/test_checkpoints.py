"""Checkpoints of the audit log: who signs them, and when."""

import threading
from contextlib import closing
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import SealedError
from common.forms.audit.line import CheckpointLine, EntryLine, SegmentLine
from common.forms.audit.verify import verify
from tests.kit.patience import at_most
from tests.nexus.access.audit.keyed import make_entry
from tests.nexus.access.audit.test_log import Key, load_lines, open_log
from tests.nexus.store.contract import threads


def test_a_stretch_ends_with_a_checkpoint_if_there_were_lines_and_a_key(tmp_path: Path) -> None:
    """A log to which nothing is appended does not grow."""
    with closing(open_log(tmp_path)) as log:
        log.append(make_entry("a"))
        assert log.end_stretch().seq == 2
        log.set_signer(Key())
        for _ in range(3):
            assert log.end_stretch().seq == 3
        log.append(make_entry("b"))
        assert log.end_stretch().seq == 5
    kinds = [type(line) for line in load_lines(tmp_path)]
    assert kinds == [SegmentLine, EntryLine, CheckpointLine, EntryLine, CheckpointLine]
    report = verify(tmp_path, public_keys=[Key().public_key])
    assert (report.faults, report.chains[0].signed) == ([], 2)


def list_signers(directory: Path) -> list[bytes]:
    """List the public keys in all checkpoints."""
    return [line.public_key for line in load_lines(directory) if isinstance(line, CheckpointLine)]


class NextKey(Key):
    """The signer of the generation after it."""

    _key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    public_key = _key.public_key().public_bytes_raw()


class LentKey(Key):
    """A signer that is wiped after a while."""

    is_wiped = False

    def sign(self, message: bytes) -> bytes:
        if self.is_wiped:
            raise SealedError("the audit key was wiped")
        return super().sign(message)


def test_a_signer_is_replaced_after_a_last_checkpoint(tmp_path: Path) -> None:
    """The key before signs the lines so far, and may be wiped at once; the next one signs the rest."""
    with closing(open_log(tmp_path)) as log:
        first = LentKey()
        log.set_signer(first, [b"0"])
        log.append(make_entry("a"))
        log.replace_signer(NextKey(), [b"0", b"1"])
        first.is_wiped = True
        log.append(make_entry("b"))
    assert list_signers(tmp_path) == [Key.public_key, NextKey.public_key]
    assert not verify(tmp_path, public_keys=[Key.public_key, NextKey.public_key]).faults


def test_a_signer_is_replaced_while_checkpoints_are_made(tmp_path: Path) -> None:
    """None of the key before comes after one of the next key."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(Key(), [b"0"])

        def work(name: int) -> None:
            for _ in range(20):
                log.append(make_entry(str(name)))
                log.end_stretch()

        with threads(work, 2):
            log.replace_signer(NextKey(), [b"0", b"1"])
    signers = list_signers(tmp_path)
    changed_at = signers.index(NextKey.public_key)
    assert signers == [Key.public_key] * changed_at + [NextKey.public_key] * (len(signers) - changed_at)


def test_a_signer_without_lines_signs_nothing(tmp_path: Path) -> None:
    """A log that stands still has no checkpoint by the key before."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(Key(), [b"0"])
        log.replace_signer(NextKey(), [b"0", b"1"])
        log.append(make_entry("a"))
    assert list_signers(tmp_path) == [NextKey.public_key]


def test_a_signer_is_replaced_by_a_later_one_only(tmp_path: Path) -> None:
    """Neither by that of a chain that is no longer, nor where there is none any more: its keys were withdrawn."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(NextKey(), [b"0", b"1"])
        for links in ([b"0"], [b"0", b"1"]):
            log.replace_signer(Key(), links)
        log.append(make_entry("a"))
        log.end_stretch()
        log.set_signer(None)
        log.replace_signer(Key(), [b"0", b"1", b"2"])
        log.append(make_entry("b"))
    assert list_signers(tmp_path) == [NextKey.public_key, b""]


def test_a_signer_that_is_replaced_waits_for_no_disk(tmp_path: Path) -> None:
    """A line that hangs is signed by the next key."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(Key(), [b"0"])
        log.append(make_entry("a"))
        replacing = threading.Thread(target=log.replace_signer, args=(NextKey(), [b"0", b"1"]))
        with log._lock:  # as while a line is being written
            replacing.start()
            replacing.join(at_most(5))
            assert not replacing.is_alive()
    assert list_signers(tmp_path) == [NextKey.public_key]


def test_the_last_checkpoint_is_signed_at_once_and_written_later(tmp_path: Path) -> None:
    """Lines that were being written meanwhile do not break it: it is the next line."""
    with closing(open_log(tmp_path)) as log:
        log.set_signer(Key())
        log.append(make_entry("a"))
        log.set_signer(None)
        log.append(make_entry("b"))
        log.set_signer(None)
    kinds = [type(line) for line in load_lines(tmp_path)]
    assert kinds == [SegmentLine, EntryLine, CheckpointLine, EntryLine, CheckpointLine]
    report = verify(tmp_path)
    assert (report.faults, report.chains[0].signed_seq) == ([], 3)
