"""Chains of generations for tests, of clusters that exist nowhere else."""

import hashlib
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.forms.chain import Chain, Link, verify_chain
from common.forms.genesis import Genesis


class ChainMaker:
    """A chain that grows; the keys are the same for the same *seed* and branches."""

    def __init__(self, *, cluster_id: bytes = b"c" * 16, seed: bytes = b"a" * 32) -> None:
        self.cluster_id = cluster_id
        self.keys = [Ed25519PrivateKey.from_private_bytes(seed)]  # the audit keys, one for each record
        self.genesis = Genesis(cluster_id, 1, b"k" * 32, public_bytes(self.key), b"r" * 1216, b"e" * 32)
        self.records = [self.genesis.encode()]
        self._seed = seed

    @property
    def key(self) -> Ed25519PrivateKey:
        """The current signer's."""
        return self.keys[-1]

    @property
    def chain(self) -> Chain:
        """The chain, verified."""
        return verify_chain(self.records, self.genesis.fingerprint)

    def make_link(self, *, branch: str = "", **parts: Any) -> tuple[Link, Ed25519PrivateKey]:
        """Make the link that would come next, with these parts changed; return it and the audit key it names."""
        seq = len(self.records)
        key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(self._seed + b"%d" % seq + branch.encode()).digest())
        link = Link(
            self.cluster_id,
            seq,
            before=hashlib.sha256(self.records[-1]).digest(),
            timeline=1,
            revision=100 * seq,
            control_revision=10 * seq,
            generation=1 + seq,
            kcv=b"k" * 32,
            audit_public_key=public_bytes(key),
            recovery_digest=b"r" * 32,
            escrow_digest=b"e" * 32,
        )
        return replace(link, **parts), key

    def add(self, *, branch: str = "", **parts: Any) -> "ChainMaker":
        """Add a link; those of another *branch* have other keys."""
        link, key = self.make_link(branch=branch, **parts)
        self.records.append(link.sign(self.key.sign))
        self.keys.append(key)
        return self

    def grow(self, links: int) -> "ChainMaker":
        """Add that many links."""
        for _ in range(links):
            self.add()
        return self

    def cut(self, seq: int) -> "ChainMaker":
        """Return a maker of the chain up to record *seq*."""
        other = ChainMaker(cluster_id=self.cluster_id, seed=self._seed)
        other.keys, other.records = self.keys[: seq + 1], self.records[: seq + 1]
        return other


def public_bytes(key: Ed25519PrivateKey) -> bytes:
    """Return the public half of *key*, 32 bytes."""
    return key.public_key().public_bytes_raw()


@lru_cache
def make_chain(links: int) -> ChainMaker:
    """Return a chain with that many links; nobody changes it."""
    return ChainMaker().grow(links)
