"""Puts of one person, each with what came of it: what the store has to hold after anything that went wrong.

- Acknowledged: it is there, at the version that was answered.
- Refused with a reason of ours that says so: it is not there.
- Everything else, such as a connection that broke: whole, or not at all.
"""

import os
from dataclasses import dataclass, field

import grpc

from shardhold.v1 import secrets_pb2 as pb
from tests.kit.patience import at_most
from tests.kit.person import TIMEOUT_S, Person
from tests.kit.refusal import read_reason

_NOT_MADE = {"STORE_UNAVAILABLE", "AUDIT_UNAVAILABLE", "NEXUS_SEALED", "NEXUS_RECOVERING", "WRONG_STATE"}
_RECENT = 3  # secrets
_MOST = 90  # versions of one secret, of which 100 are kept


@dataclass
class _Written:
    """The puts of one secret, by number."""

    path: str
    tried: int = 0
    acknowledged: dict[int, int] = field(default_factory=dict)  # version → number
    refused: set[int] = field(default_factory=set)

    def value(self, number: int) -> bytes:
        """Return the one value of put *number*, some of them longer than a page of the database."""
        return f"{self.path}#{number}#".encode() * (300 if number % 3 == 0 else 5)


class Ledger:
    """What was put, and what came of it. Begin a new secret now and then: the newest few are read at each check."""

    def __init__(self, person: Person) -> None:
        self._secrets = person.secrets
        self._written: list[_Written] = []
        self.turn()

    def turn(self) -> None:
        """Begin a new secret."""
        self._written.append(_Written(f"ledger/{len(self._written)}"))

    def put(self) -> str:
        """Put a new value; return why that was refused, empty: it was not."""
        if self._written[-1].tried >= _MOST:
            self.turn()
        secret = self._written[-1]
        secret.tried += 1
        request = pb.PutSecretRequest(
            path=secret.path, fields={"value": secret.value(secret.tried)}, request_id=os.urandom(16)
        )
        try:
            answer = self._secrets.PutSecret(request, timeout=TIMEOUT_S)
        except grpc.RpcError as exc:
            reason = read_reason(exc)
            if reason in _NOT_MADE:
                secret.refused.add(secret.tried)
            return reason or exc.code().name
        assert answer.version not in secret.acknowledged, f"{secret.path}: version {answer.version} was made twice"
        secret.acknowledged[answer.version] = secret.tried
        return ""

    def read(self) -> str:
        """Read what was acknowledged last; return why that was refused. A wrong value, or none, fails the test."""
        secret = self._written[-1]
        if not secret.acknowledged:
            return ""
        version = max(secret.acknowledged)
        try:
            found = self._get(secret, version)
        except grpc.RpcError as exc:
            refused = read_reason(exc) or exc.code().name
        else:
            assert found == secret.value(secret.acknowledged[version]), f"{secret.path} has another value"
            return ""
        assert refused != "NOT_FOUND", f"{secret.path}: version {version} is lost"
        return refused

    def check(self, *, whole: bool = False) -> None:
        """Compare the newest few secrets with what the nexus has, every version of them; with *whole* all secrets."""
        for secret in self._written if whole else self._written[-_RECENT:]:
            self._check(secret)

    def _check(self, secret: _Written) -> None:
        numbers = {secret.value(number): number for number in range(1, secret.tried + 1)}
        newest = self._find_newest(secret)
        made = [numbers.get(self._get(secret, version), 0) for version in range(1, newest + 1)]
        told = f"{secret.path}: versions hold puts {made}, acknowledged {secret.acknowledged}, refused {secret.refused}"
        assert made == sorted(set(made)), told  # each once, in their order
        assert 0 not in made, told  # a value that nobody put
        assert not secret.refused & {*made}, told
        for version, number in secret.acknowledged.items():
            assert version <= newest, told
            assert made[version - 1] == number, told

    def _find_newest(self, secret: _Written) -> int:
        request = pb.GetSecretRequest(path=secret.path)
        try:
            return int(self._secrets.GetSecret(request, timeout=at_most(TIMEOUT_S), wait_for_ready=True).version)
        except grpc.RpcError as exc:
            if exc.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return 0

    def _get(self, secret: _Written, version: int) -> bytes:
        request = pb.GetSecretRequest(path=secret.path, version=version)
        return self._secrets.GetSecret(request, timeout=at_most(TIMEOUT_S)).fields["value"]
