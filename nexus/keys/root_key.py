"""The root key of one generation and the keys derived from it.

    root key ──HKDF-Expand──┬─ kcv          key check value, stored in clear
                            ├─ keyring key  wraps the KEKs
                            ├─ control key  HMAC of the control manifest
                            ├─ request key  HMAC of what a request asked for
                            ├─ outbox key   HMAC of what the audit leaves in the store
                            └─ audit key    Ed25519 seed

The root key is uniform, so there is no Extract (RFC 5869 §3.3), and it is never the key of a cipher.
"""

import hmac

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import SealedError, WrongRootKeyError
from common.forms.codec import fields, u64
from common.keys.derive import expand, hmac_sha256
from common.keys.protected import ProtectedBuffer, ProtectedMemory

ROOT_KEY_SIZE = 32


class RootKey:
    """A root key in protected memory. Owns its buffers; `release` wipes them."""

    def __init__(self, key: ProtectedBuffer, *, cluster_id: bytes, generation: int, memory: ProtectedMemory) -> None:
        """Derive what hangs on *key*, 32 bytes, which this object owns from here on."""
        self.cluster_id = cluster_id
        self.generation = generation
        self._key = key
        self.kcv = self._derive_public(b"kcv")
        self.keyring_key = self._derive(b"keyring", memory)
        self._control_key = self._derive(b"control", memory)
        self._request_key = self._derive(b"request", memory)
        self._outbox_key = self._derive(b"outbox", memory)
        with self._derive(b"audit", memory) as seed:
            audit_key = Ed25519PrivateKey.from_private_bytes(seed.view)
        self._audit_key: Ed25519PrivateKey | None = audit_key
        self.public_key = audit_key.public_key().public_bytes_raw()

    @property
    def view(self) -> memoryview:
        """The root key itself, for splitting it and for sealing its escrow."""
        return self._key.view

    def check(self, kcv: bytes) -> None:
        """Compare with the stored key check value, in constant time.

        Raises:
            WrongRootKeyError: They differ.
        """
        if not hmac.compare_digest(self.kcv, kcv):
            raise WrongRootKeyError(f"rebuilt key does not match the key check value of generation {self.generation}")

    def sign(self, message: bytes) -> bytes:
        """Sign with the audit key, Ed25519; 64 bytes.

        Raises:
            SealedError: The key was wiped.
        """
        audit_key = self._audit_key
        if audit_key is None:
            raise SealedError("the audit key was wiped")
        return audit_key.sign(message)

    def authenticate(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of *message* under the control key, 32 bytes."""
        return hmac_sha256(self._control_key.view, message)

    def authenticate_request(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of *message* under the request key, 32 bytes."""
        return hmac_sha256(self._request_key.view, message)

    def authenticate_audit(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of *message* under the outbox key, 32 bytes."""
        return hmac_sha256(self._outbox_key.view, message)

    def release(self) -> None:
        """Wipe the root key and all that was derived from it."""
        for buffer in (self._key, self.keyring_key, self._control_key, self._request_key, self._outbox_key):
            buffer.release()
        self._audit_key = None

    def _derive(self, purpose: bytes, memory: ProtectedMemory) -> ProtectedBuffer:
        buffer = memory.allocate(32)
        expand(self._key.view, self._info(purpose), buffer.view)
        return buffer

    def _derive_public(self, purpose: bytes) -> bytes:
        value = bytearray(32)
        expand(self._key.view, self._info(purpose), memoryview(value))
        return bytes(value)

    def _info(self, purpose: bytes) -> bytes:
        return fields(b"shardhold-root-v1", purpose, self.cluster_id, u64(self.generation))
