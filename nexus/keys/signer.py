"""What signs for the current generation, as a Protocol; the root key implements it."""

from typing import Protocol


class Signer(Protocol):
    """Signs with the audit key of the current generation, Ed25519."""

    @property
    def public_key(self) -> bytes:
        """32 bytes."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes.

        Raises:
            SealedError: The key was wiped.
        """
        ...
