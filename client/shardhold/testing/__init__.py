"""Fakes of a nexus and of both clients, in memory, for the unit tests of services.

    from shardhold.testing import FakeNexus

    def test_login():
        nexus = FakeNexus()
        client = nexus.client()
        client.put("team/app/db", {"password": "correct horse"})
        assert connect(client).password == "correct horse"

`FakeClient` is a `shardhold.Client` and `FakeAsyncClient` a `shardhold.AsyncClient`: what they send, how they read the
answer and what they raise is the same code. Only the nexus is a fake, and the SDK's own tests hold it to a real one.
"""

from shardhold.testing._nexus import FakeAsyncClient, FakeClient, FakeNexus

__all__ = ["FakeNexus", "FakeClient", "FakeAsyncClient"]
