"""What signs and authenticates for the current generation, as Protocols; the root key implements both."""

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


class AuditAuthenticator(Protocol):
    """Authenticates what the audit leaves in the store."""

    @property
    def generation(self) -> int:
        """Of the root key that it hangs on."""
        ...

    def authenticate_audit(self, message: bytes) -> bytes:
        """Return the HMAC-SHA256 of *message*, 32 bytes."""
        ...
