"""What a check-and-set wants to find."""

from dataclasses import dataclass

from common.errors import ConflictError, InvalidArgumentError
from nexus.store.protocol import SecretRow

INCARNATION_SIZE = 16


@dataclass(frozen=True, slots=True)
class Expected:
    """What a check-and-set wants to find; None: anything."""

    version: int | None = None  # 0: no secret
    incarnation: bytes = b""  # empty: any

    def check(self, *, of_existing: str = "") -> None:
        """Check that the expectation itself makes sense; *of_existing*: what needs a secret, as "deleted".

        Raises:
            InvalidArgumentError: An incarnation of the wrong size, or without a version, or no secret is expected.
        """
        if self.incarnation and len(self.incarnation) != INCARNATION_SIZE:
            raise InvalidArgumentError(
                f"expected_incarnation: got {len(self.incarnation)} bytes, want {INCARNATION_SIZE} or none"
            )
        if self.version == 0 and of_existing:
            raise InvalidArgumentError(
                f"expected_version: got 0, want 1 or more: what does not exist cannot be {of_existing}"
            )
        if self.incarnation and not self.version:
            raise InvalidArgumentError("expected_incarnation: got one without expected_version, want both")

    def compare(self, current: SecretRow | None) -> None:
        """Compare with the secret as it is.

        Raises:
            ConflictError: It is another version or incarnation.
        """
        if self.version is None:
            return
        version = current.current_version if current else 0
        if version != self.version:
            raise ConflictError(f"expected version {self.version}, current is {version}")
        if current and self.incarnation and current.incarnation != self.incarnation:
            raise ConflictError(f"expected version {version} of another incarnation, the secret was created anew since")
