"""A version of a secret that the keyring job cannot open, and what people do about it."""

import os
import sqlite3
from contextlib import closing

from shardhold.v1 import root_pb2 as pb
from shardhold.v1 import secrets_pb2
from shardhold.v1.root_pb2_grpc import RootServiceStub
from tests.cluster.operations import REASON, Operations
from tests.kit.patience import at_most

_TIMEOUT_S = 20.0


class DamagedVersion:
    """The only version of a new secret, which is damaged in the store of a nexus that this kills."""

    def __init__(self, operations: Operations) -> None:
        self._cluster = operations.cluster
        self._path = f"damaged/{os.urandom(4).hex()}"
        self._put()
        self._cluster.kill("nexus")
        self._flip_wrap()

    def repair(self) -> None:
        """Kill the nexus, and make the version as it was."""
        self._cluster.kill("nexus")
        self._flip_wrap()

    def find_key(self) -> pb.VersionKey | None:
        """Return its name in quarantine; None: it is not there."""
        rows = self._root.ListQuarantine(
            pb.ListQuarantineRequest(), timeout=at_most(_TIMEOUT_S), wait_for_ready=True
        ).rows
        return next((row.key for row in rows if row.key.path == self._path), None)

    def wait_quarantined(self) -> None:
        """Wait until the keyring job has put it into quarantine."""
        self._cluster.wait(f"{self._path} is in quarantine", lambda: self.find_key() is not None)

    def retry(self) -> None:
        """Have it tried again, unless that has been said already."""
        if (key := self.find_key()) is not None:
            self._root.RetryQuarantined(pb.RetryQuarantinedRequest(key=key), timeout=at_most(_TIMEOUT_S))

    def give_up(self) -> None:
        """Give it up by name; again: nothing changes."""
        request = pb.AbandonQuarantinedRequest(key=self.find_key(), reason=REASON)
        self._root.AbandonQuarantined(request, timeout=at_most(_TIMEOUT_S))

    def forget(self) -> None:
        """Delete the secret, and begin it anew, so that no row of the version is left."""
        request = secrets_pb2.DeleteSecretRequest(path=self._path, request_id=os.urandom(16))
        self._cluster.superuser.secrets.DeleteSecret(request, timeout=at_most(_TIMEOUT_S))
        self._put()

    def _put(self) -> None:
        request = secrets_pb2.PutSecretRequest(path=self._path, fields={"value": b"1"}, request_id=os.urandom(16))
        self._cluster.superuser.secrets.PutSecret(request, timeout=at_most(_TIMEOUT_S), wait_for_ready=True)

    @property
    def _root(self) -> RootServiceStub:
        return self._cluster.superuser.root

    def _flip_wrap(self) -> None:
        """Flip every bit of the wrap of its DEK."""
        with closing(sqlite3.connect(self._cluster.directory.data / "nexus.db")) as database:
            (wrap,) = database.execute("SELECT wrapped_dek FROM versions WHERE path = ?", (self._path,)).fetchone()
            flipped = bytes(byte ^ 0xFF for byte in wrap)
            database.execute("UPDATE versions SET wrapped_dek = ? WHERE path = ?", (flipped, self._path))
            database.commit()
