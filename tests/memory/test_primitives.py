"""The primitives of `common` leave no trace, each alone: on the main thread and on a worker, at level 2.

What the child itself cannot know, such as the shared secret of a delivery, is computed here, by the other side.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from tests.kit.process_memory import find_keys, list_regions, read_region
from tests.memory.primitives_child import MASK

pytestmark = pytest.mark.memory

KEY_SIZE = 32
THREADS = pytest.mark.parametrize("thread", ["main", "worker"])


@dataclass
class Child:
    """A process that has done its work and stands still."""

    pid: int
    keys: dict[str, bytes] = field(default_factory=dict)
    public: list[bytes] = field(default_factory=list)  # of the one-shot and ephemeral keys that it had

    def add(self, kind: str, content: bytes) -> None:
        self.keys[f"{kind} {len(self.keys)}"] = content


@contextmanager
def run_child(scenario: str, thread: str) -> Iterator[Child]:
    """Run the scenario, act as its other side, and hold it still while the body runs."""
    command = [sys.executable, "-m", "tests.memory.primitives_child", scenario, thread]
    recipients: list[X25519PrivateKey] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        child = Child(process.pid)
        try:
            for line in process.stdout:
                kind, _, content = line.rstrip("\n").partition(" ")
                data = bytes.fromhex(content)
                answer = b""
                match kind:
                    case "key":
                        child.add("key", bytes(byte ^ MASK for byte in data))
                        if scenario == "seal":
                            recipients.append(X25519PrivateKey.generate())
                            answer = recipients[-1].public_key().public_bytes_raw()
                    case "public":
                        answer = _seal_to(child, data)
                    case "sealed":
                        private = recipients.pop(0)
                        enc = data[:KEY_SIZE]
                        shared = private.exchange(X25519PublicKey.from_public_bytes(enc))
                        child.public.append(enc)
                        _derive_all(child, shared, enc, private.public_key().public_bytes_raw())
                    case "done":
                        break
                if answer:
                    process.stdin.write(answer.hex() + "\n")
                    process.stdin.flush()
            yield child
        finally:
            process.kill()


def _seal_to(child: Child, public: bytes) -> bytes:
    """Seal a random shard to the child's one-shot key, by RFC 9180 as another implementation would."""
    ephemeral = X25519PrivateKey.generate()
    enc = ephemeral.public_key().public_bytes_raw()
    shared = ephemeral.exchange(X25519PublicKey.from_public_bytes(public))
    key, nonce = _derive_all(child, shared, enc, public)
    shard = os.urandom(33)
    child.public.append(public)
    child.add("plaintext", shard)
    return enc + ChaCha20Poly1305(key).encrypt(nonce, shard, b"aad")


def _derive_all(child: Child, shared: bytes, enc: bytes, recipient: bytes) -> tuple[bytes, bytes]:
    """Name every secret between the shared secret and the AEAD's key and nonce."""
    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x03"

    def extract(suite_id: bytes, salt: bytes, label: bytes, key: bytes) -> bytes:
        return HKDF.extract(SHA256(), salt or bytes(KEY_SIZE), b"HPKE-v1" + suite_id + label + key)

    def expand(suite_id: bytes, key: bytes, label: bytes, info: bytes, size: int) -> bytes:
        labelled = size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + info
        return HKDFExpand(SHA256(), size, labelled).derive(key)

    prk = extract(kem, b"", b"eae_prk", shared)
    kem_secret = expand(kem, prk, b"shared_secret", enc + recipient, KEY_SIZE)
    context = b"\x00" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", b"info")
    secret = extract(suite, kem_secret, b"secret", b"")
    key, nonce = (expand(suite, secret, label, context, size) for label, size in ((b"key", 32), (b"base_nonce", 12)))
    for name, value in (("dh", shared), ("prk", prk), ("kem", kem_secret), ("secret", secret), ("aead key", key)):
        child.add(name, value)
    return key, nonce


def find_private_keys(child: Child) -> list[int]:
    """Return the addresses of 32 bytes whose X25519 public key is one of the child's."""
    found, seen = [], set[bytes]()
    for region in list_regions(child.pid):
        if region.is_protected or region.name.startswith("/"):  # only a kernel bug could put a key into a file's pages
            continue
        for address, piece in read_region(child.pid, region):
            for offset in range(0, len(piece) - KEY_SIZE + 1, 8):
                window = piece[offset : offset + KEY_SIZE]
                # 32 random bytes have 30 different ones; fewer than 22 is 1 in 10^7.
                if window[:8] == bytes(8) or len(set(window)) < 22 or window in seen:
                    continue
                seen.add(window)
                if X25519PrivateKey.from_private_bytes(window).public_key().public_bytes_raw() in child.public:
                    found.append(address + offset)
    return found


@THREADS
@pytest.mark.parametrize(("scenario", "keys"), [("derive", 15), ("shamir", 21), ("open", 18), ("seal", 18)])
def test_nothing_stays(scenario: str, keys: int, thread: str) -> None:
    """Inputs, outputs and everything between them are in no readable page, only in the protected ones."""
    with run_child(scenario, thread) as child:
        assert len(child.keys) == keys
        assert [str(finding) for finding in find_keys(child.pid, child.keys)] == []
        assert find_private_keys(child) == []


@THREADS
def test_what_stays_is_found(thread: str) -> None:
    """The scan finds a key that one of these calls leaves."""
    with run_child("plant", thread) as child:
        found = {finding.key for finding in find_keys(child.pid, child.keys)}
        assert found == set(child.keys)


def test_private_keys_that_stay_are_found() -> None:
    """The search for private keys finds one that was not freed because it waits for its message."""
    with run_child("wait", "main") as child:
        assert find_private_keys(child)
