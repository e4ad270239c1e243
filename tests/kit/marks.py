"""Rollback marks for tests, signed as a nexus would: by the audit key of a cluster that exists nowhere else."""

from dataclasses import replace

from common.forms.mark import Mark, SignedMark
from tests.kit.chains import ChainMaker


class MarkMaker:
    """The audit key of one cluster and its chain, the same for the same *seed*; or what *chains* has."""

    def __init__(
        self, *, cluster_id: bytes = b"c" * 16, seed: bytes = b"a" * 32, chains: ChainMaker | None = None
    ) -> None:
        self.chains = chains or ChainMaker(cluster_id=cluster_id, seed=seed)
        self.key = self.chains.key
        self.record = self.chains.genesis
        self.genesis = self.record.fingerprint
        self.mark = Mark(
            self.record.cluster_id,
            timeline=1,
            revision=10 + 100 * self.chains.chain.seq,
            control_revision=4 + 10 * self.chains.chain.seq,
            generation=self.chains.chain.generation,
            set_number=7,
            made_at=1_700_000_000_000_000,
            chain_seq=self.chains.chain.seq,
        )

    def make(self, *, chain: tuple[bytes, ...] | None = None, **parts: object) -> SignedMark:
        """Sign the usual mark with these parts changed."""
        changed: Mark = replace(self.mark, **parts)  # type: ignore[arg-type]
        return self.sign(changed.encode(), chain=chain)

    def sign(self, encoded: bytes, *, chain: tuple[bytes, ...] | None = None) -> SignedMark:
        """Sign whatever it is."""
        return SignedMark(encoded, self.key.sign(encoded), tuple(self.chains.records) if chain is None else chain)
