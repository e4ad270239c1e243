"""The one cluster that the configuration of a nexus allows it to serve, by the fingerprint of its genesis record.

Whoever can put another cluster's database under a nexus, keepers included, would have it serve that one: to the nexus
everything there fits together. Custodians compare the fingerprint with their cards; a restarted nexus can ask nobody.
"""

from dataclasses import dataclass

from common.errors import CorruptRowError, WrongStateError


@dataclass(frozen=True, slots=True)
class GenesisPin:
    """Empty: any cluster may be served, and a new one made."""

    fingerprint: bytes = b""  # 32 bytes, or none

    def check(self, fingerprint: bytes) -> None:
        """Check the genesis record of a cluster that this nexus is about to serve.

        Raises:
            CorruptRowError: It is another cluster's.
        """
        if self.fingerprint and fingerprint != self.fingerprint:
            raise CorruptRowError(
                f"the store is of a cluster with genesis {fingerprint.hex()}, and the configuration has genesis = "
                f"{self.fingerprint.hex()}: put the store of that cluster back"
            )

    def check_new(self) -> None:
        """Check that a new cluster may be made.

        Raises:
            WrongStateError: Its genesis record could not be the configured one.
        """
        if self.fingerprint:
            raise WrongStateError(
                f"the configuration has genesis = {self.fingerprint.hex()}, so no new cluster is made: put the store "
                "of that cluster back, or take the option out"
            )
