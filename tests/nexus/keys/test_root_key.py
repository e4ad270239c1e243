"""The root key and what hangs on it."""

import hashlib
import hmac
import os

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from common.errors import WrongRootKeyError
from common.forms.codec import fields, u64
from common.keys.protected import ProtectedMemory
from nexus.keys.root_key import RootKey
from tests.nexus.cluster import is_wiped

SECRET = hashlib.sha256(b"a root key").digest()
CLUSTER = hashlib.sha256(b"a cluster").digest()[:16]


def make(memory: ProtectedMemory, secret: bytes = SECRET, cluster_id: bytes = CLUSTER, generation: int = 3) -> RootKey:
    buffer = memory.allocate(32)
    buffer.view[:] = secret
    return RootKey(buffer, cluster_id=cluster_id, generation=generation, memory=memory)


def derived(purpose: bytes) -> bytes:
    """Derive with the library's own HKDF-Expand."""
    info = fields(b"shardhold-root-v1", purpose, CLUSTER, u64(3))
    return HKDFExpand(SHA256(), 32, info).derive(SECRET)


def test_every_key_is_hkdf_expand_of_the_root_key_under_its_own_label(memory: ProtectedMemory) -> None:
    """The five keys, as an independent implementation derives them."""
    root_key = make(memory)
    assert root_key.kcv == derived(b"kcv")
    assert root_key.keyring_key.view == derived(b"keyring")
    assert root_key.authenticate(b"rows") == hmac.digest(derived(b"control"), b"rows", "sha256")
    assert root_key.authenticate_request(b"a put") == hmac.digest(derived(b"request"), b"a put", "sha256")
    assert root_key.authenticate_audit(b"rows") == hmac.digest(derived(b"outbox"), b"rows", "sha256")
    audit = Ed25519PrivateKey.from_private_bytes(derived(b"audit"))
    assert root_key.public_key == audit.public_key().public_bytes_raw()
    assert root_key.sign(b"a mark") == audit.sign(b"a mark")


@pytest.mark.parametrize(
    ("secret", "cluster_id", "generation"),
    [
        pytest.param(os.urandom(32), CLUSTER, 3, id="another root key"),
        pytest.param(SECRET, os.urandom(16), 3, id="another cluster"),
        pytest.param(SECRET, CLUSTER, 4, id="another generation"),
    ],
)
def test_nothing_derived_is_the_same_elsewhere(
    memory: ProtectedMemory, secret: bytes, cluster_id: bytes, generation: int
) -> None:
    """Cluster and generation are bound into every derivation."""
    one, two = make(memory), make(memory, secret, cluster_id, generation)
    assert one.kcv != two.kcv
    assert one.keyring_key.view != two.keyring_key.view
    assert one.authenticate(b"m") != two.authenticate(b"m")
    assert one.authenticate_request(b"m") != two.authenticate_request(b"m")
    assert one.authenticate_audit(b"m") != two.authenticate_audit(b"m")
    with pytest.raises(InvalidSignature):
        Ed25519PublicKey.from_public_bytes(two.public_key).verify(one.sign(b"m"), b"m")


def test_the_check_takes_the_kcv_and_nothing_else(memory: ProtectedMemory) -> None:
    """One flipped bit, another length: WrongRootKeyError, which names the generation."""
    root_key = make(memory)
    root_key.check(derived(b"kcv"))
    flipped = bytearray(root_key.kcv)
    flipped[31] ^= 1
    for wrong in (bytes(flipped), b"", root_key.kcv[:31], root_key.kcv + b"\0"):
        with pytest.raises(WrongRootKeyError, match="generation 3"):
            root_key.check(wrong)


def test_release_wipes_every_buffer(memory: ProtectedMemory) -> None:
    """Nothing of it is left in the arena, and the whole arena can be given out again."""
    root_key = make(memory)
    assert root_key.view != bytes(32)
    root_key.release()
    assert is_wiped(memory)


def test_its_repr_shows_no_key(memory: ProtectedMemory) -> None:
    """The repr of a root key, as in a log, holds no secret."""
    root_key = make(memory)
    assert SECRET.hex() not in repr(root_key)
    assert repr(SECRET) not in repr(root_key.__dict__)
