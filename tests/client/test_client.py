"""Both clients, against a server over mTLS whose answers each test writes.

Every test here runs with `Client` and with `AsyncClient`; what only the latter has is in test_aio_client.py.
"""

import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest
from google.protobuf.message import Message

import shardhold
from common.errors import (
    AuditUnavailableError,
    ConflictError,
    DecryptionError,
    DeniedError,
    IdentityUnavailableError,
    InvalidArgumentError,
    NotFoundError,
    OutcomeUnknownError,
    OverloadedError,
    RecoveringError,
    SealedError,
    ShardholdError,
    StoreUnavailableError,
    UnavailableError,
)
from pilot.dev.provider import IdentityProvider
from shardhold import (
    AsyncClient,
    Client,
    Deleted,
    State,
    Status,
    Written,
)
from shardhold.identity import ENDPOINT_VARIABLE
from shardhold.v1 import cluster_pb2, secrets_pb2
from tests.client.bridge import MakeClient
from tests.client.servers import EndCall, Nexus
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.patience import at_most, patience

INCARNATION = bytes(range(16))
CALLS = ["put", "patch", "get", "list", "versions", "delete", "undelete", "destroy", "update_metadata", "status"]


def _secret(**parts: Any) -> secrets_pb2.GetSecretResponse:
    return secrets_pb2.GetSecretResponse(path="team/app/db", version=3, incarnation=INCARNATION, **parts)


class _NotScrubbedError(UnavailableError):
    reason = "NOT_SCRUBBED"


class TestCalls:
    """What goes to the server and what comes back."""

    def test_put(self, client: Client, nexus: Nexus) -> None:
        """Fields are sent as bytes, text as UTF-8, with a request id of 16 bytes; the answer says what was written."""
        nexus.fail("PutSecret", then=secrets_pb2.PutSecretResponse(version=1, incarnation=INCARNATION, revision=7))
        assert client.put("team/app/db", {"user": "münchen", "key": b"\x00\xff"}) == Written(1, INCARNATION, 7)
        (request,) = nexus.requests
        assert dict(request.fields) == {"user": "münchen".encode(), "key": b"\x00\xff"}
        assert len(request.request_id) == 16
        assert not request.HasField("expected_version")
        assert nexus.callers == {"spiffe://example.org/team/app"}

    def test_put_with_check_and_set(self, client: Client, nexus: Nexus) -> None:
        """Version 0, for a secret that must not exist, differs from no check; a given request id is used."""
        nexus.fail("PutSecret", then=secrets_pb2.PutSecretResponse())
        client.put("a", {"value": b""}, expected_version=0, expected_incarnation=INCARNATION, request_id=b"r" * 16)
        (request,) = nexus.requests
        assert request.HasField("expected_version")
        assert (request.expected_version, request.expected_incarnation) == (0, INCARNATION)
        assert request.request_id == b"r" * 16

    def test_each_put_is_its_own(self, client: Client, nexus: Nexus) -> None:
        """Two puts never share a request id."""
        nexus.fail("PutSecret", then=secrets_pb2.PutSecretResponse())
        client.put("a", {"value": b"1"})
        client.put("a", {"value": b"1"})
        assert len({request.request_id for request in nexus.requests}) == 2

    def test_get(self, client: Client, nexus: Nexus) -> None:
        """The secret comes with its version, incarnation and time; its text form shows names, never values."""
        answer = _secret(fields={"password": b"canary-5f1c", "user": b"canary-77aa"})
        answer.created_at.FromDatetime(datetime(2026, 1, 2, tzinfo=UTC))
        nexus.fail("GetSecret", then=answer)
        secret = client.get("team/app/db", version=3)
        assert secret.fields == {"password": b"canary-5f1c", "user": b"canary-77aa"}
        assert (secret.path, secret.version, secret.incarnation) == ("team/app/db", 3, INCARNATION)
        assert secret.created_at == datetime(2026, 1, 2, tzinfo=UTC)
        assert repr(secret) == str(secret) == "Secret(path='team/app/db', version=3, fields=['password', 'user'])"
        assert nexus.requests[0].version == 3

    def test_list_fetches_pages_as_needed(self, client: Client, nexus: Nexus) -> None:
        """Pages are fetched one by one and none early; an empty one in the middle does not end the list."""
        pages = {"": (["a", "b"], "t1"), "t1": ([], "t2"), "t2": (["c"], "")}

        def answer(request: secrets_pb2.ListSecretsRequest) -> Message:
            paths, token = pages[request.page_token]
            return secrets_pb2.ListSecretsResponse(
                secrets=[secrets_pb2.SecretEntry(path=path, current_version=1) for path in paths],
                next_page_token=token,
            )

        nexus.answers["ListSecrets"] = answer
        entries = client.list("team", page_size=2)
        assert nexus.requests == []
        assert [next(entries).path, next(entries).path] == ["a", "b"]
        assert len(nexus.requests) == 1
        assert [entry.path for entry in entries] == ["c"]
        assert [(request.prefix, request.page_size) for request in nexus.requests] == [("team", 2)] * 3

    def test_delete(self, client: Client, nexus: Nexus) -> None:
        """A delete sends the given versions, or none for all that are left, with check-and-set and a request id."""
        nexus.fail("DeleteSecret", then=secrets_pb2.DeleteSecretResponse(versions=[1, 2], revision=9))
        assert client.delete("a", [1, 2], expected_version=2) == Deleted((1, 2), 9)
        client.delete("a")
        some, all_left = nexus.requests
        assert (list(some.versions), some.expected_version, len(some.request_id)) == ([1, 2], 2, 16)
        assert (list(all_left.versions), all_left.HasField("expected_version")) == ([], False)

    def test_delete_of_no_version(self, client: Client, nexus: Nexus) -> None:
        """An empty list of versions is refused, and deletes nothing."""
        with pytest.raises(shardhold.InvalidArgumentError, match="versions: got none"):
            client.delete("a", (version for version in (1, 2) if version > 2))
        assert nexus.requests == []

    @pytest.mark.parametrize(
        ("state", "wanted"),
        [
            (cluster_pb2.STATE_UNSPECIFIED, State.UNKNOWN),
            (cluster_pb2.STATE_UNINITIALISED, State.UNINITIALISED),
            (cluster_pb2.STATE_INITIALISING, State.INITIALISING),
            (cluster_pb2.STATE_RECOVERING, State.RECOVERING),
            (cluster_pb2.STATE_SEALED, State.SEALED),
            (cluster_pb2.STATE_READY, State.READY),
        ],
    )
    def test_status(self, client: Client, nexus: Nexus, state: cluster_pb2.State.ValueType, wanted: State) -> None:
        """Every state of the contract has its name."""
        nexus.fail("GetStatus", then=cluster_pb2.GetStatusResponse(state=state, version="0.1.0", blocked_by=["x"]))
        assert client.status() == Status(wanted, "0.1.0", ("x",))

    def test_states_are_those_of_the_contract(self) -> None:
        """The SDK has all states of the contract, so a new one is noticed here."""
        names = {name.removeprefix("STATE_").lower() for name in cluster_pb2.State.DESCRIPTOR.values_by_name}
        assert names - {"unspecified"} == {state.value for state in State} - {"unknown"}

    def test_many_threads(self, client: Client, nexus: Nexus) -> None:
        """One client serves many threads."""
        nexus.fail("GetSecret", then=_secret(fields={"value": b"x"}))
        read: list[bytes] = []
        threads = [
            threading.Thread(target=lambda: read.extend(client.get("a").fields["value"] for _ in range(20)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert read == [b"x"] * 160


class TestRetries:
    """Which failures are retried, and for how long."""

    @pytest.mark.parametrize(
        "failure",
        [
            pytest.param(RecoveringError("2 of 3 shards"), id="recovering"),
            pytest.param(IdentityUnavailableError("its SVID expired"), id="nexus without an SVID"),
            pytest.param(StoreUnavailableError("disk full"), id="store away"),
            pytest.param(OutcomeUnknownError("commit failed"), id="outcome unknown"),
            pytest.param(_NotScrubbedError("a reader has the file open"), id="not scrubbed yet"),
            pytest.param(EndCall(), id="call ended by the server"),
        ],
    )
    def test_passing_trouble(self, client: Client, nexus: Nexus, failure: ShardholdError | EndCall) -> None:
        """A passing failure is retried with the same request id, unnoticed by the caller."""
        nexus.fail("PutSecret", failure, failure, then=secrets_pb2.PutSecretResponse(version=1))
        assert client.put("a", {"value": b"1"}).version == 1
        assert len(nexus.requests) == 3
        assert len({request.request_id for request in nexus.requests}) == 1

    @pytest.mark.parametrize(
        ("failure", "wanted"),
        [
            pytest.param(SealedError("sealed"), shardhold.SealedError, id="sealed"),
            pytest.param(AuditUnavailableError("no audit"), shardhold.UnavailableError, id="audit"),
            pytest.param(OverloadedError("full"), shardhold.OverloadedError, id="overloaded"),
            pytest.param(DeniedError("not you"), shardhold.DeniedError, id="denied"),
            pytest.param(NotFoundError("none"), shardhold.NotFoundError, id="not found"),
            pytest.param(ConflictError("version 3, expected 2"), shardhold.ConflictError, id="check-and-set"),
        ],
    )
    def test_lasting_trouble(
        self, client: Client, nexus: Nexus, failure: ShardholdError, wanted: type[shardhold.Error]
    ) -> None:
        """A lasting failure is raised at once, after one call."""
        nexus.fail("GetSecret", failure, then=_secret())
        with pytest.raises(wanted, match=str(failure)) as caught:
            client.get("a")
        assert type(caught.value) is wanted
        assert caught.value.reason == failure.reason
        assert len(nexus.requests) == 1

    @pytest.mark.parametrize(
        ("failure", "message"),
        [
            pytest.param(NotFoundError("no such version"), "team/db: no such version", id="not found"),
            pytest.param(NotFoundError("team/db: it is gone"), "team/db: it is gone", id="named by the server: once"),
            pytest.param(DeniedError("not you"), "team/db: not you", id="denied"),
            pytest.param(ConflictError("version 3"), "team/db: version 3", id="check-and-set"),
            pytest.param(DecryptionError("does not open"), "team/db: does not open", id="integrity"),
            pytest.param(InvalidArgumentError("path: no"), "path: no", id="argument: the server names it"),
            pytest.param(SealedError("sealed"), "sealed", id="not about the path"),
        ],
    )
    def test_message_names_the_path(self, client: Client, nexus: Nexus, failure: ShardholdError, message: str) -> None:
        """What is about the path says which one it was."""
        nexus.fail("GetSecret", failure, then=_secret())
        with pytest.raises(shardhold.Error) as caught:
            client.get("team/db")
        assert (caught.value.message, caught.value.args) == (message, (message,))

    def test_the_timeout_is_for_all_tries(self, client: Client, nexus: Nexus) -> None:
        """A nexus that keeps recovering gives its own error within the time-out, after several tries."""
        nexus.fail("GetSecret", *[RecoveringError("1 of 3 shards")] * 1000, then=_secret())
        began = monotonic()
        with pytest.raises(shardhold.RecoveringError, match="1 of 3 shards"):
            client.get("a", timeout=patience(1))
        assert monotonic() - began < patience(8)  # a thousand tries would take minutes
        assert len(nexus.requests) >= 2

    def test_deadline(self, client: Client, nexus: Nexus) -> None:
        """A call that is not answered ends once, at its time-out, as a DeadlineError."""
        go_on = threading.Event()

        def answer(_: Any) -> Message:
            go_on.wait(at_most(10))
            return _secret()

        nexus.answers["GetSecret"] = answer
        began = monotonic()
        with pytest.raises(shardhold.DeadlineError):
            client.get("a", timeout=0.2)
        assert monotonic() - began < patience(8)  # the answer would come after 10 s
        go_on.set()

    def test_restarted_nexus(self, client: Client, nexus: Nexus, ca: Authority) -> None:
        """A caller that waits does not notice a nexus that dies and comes back within the time-out."""
        nexus.fail("GetSecret", then=_secret(fields={"value": b"1"}))
        client.get("a")
        nexus.stop()
        read: list[bytes] = []
        thread = threading.Thread(target=lambda: read.append(client.get("a", timeout=at_most(20)).fields["value"]))
        thread.start()
        successor = Nexus(ca, nexus.port)
        successor.fail("GetSecret", then=_secret(fields={"value": b"2"}))
        thread.join()
        assert read == [b"2"]
        successor.stop()


class TestSetup:
    """How a client is created and closed."""

    def test_defaults(
        self, make: MakeClient, nexus: Nexus, provider: IdentityProvider, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Address and Workload API come from the environment."""
        monkeypatch.setenv("SHARDHOLD_ADDRESS", nexus.address)
        monkeypatch.setenv(ENDPOINT_VARIABLE, f"unix://{provider.add('/team/env')}")
        nexus.fail("GetStatus", then=cluster_pb2.GetStatusResponse(state=cluster_pb2.STATE_READY))
        with make() as client:
            assert client.status().state is State.READY
            assert repr(client).endswith(f"Client('{nexus.address}')")
        assert nexus.callers == {"spiffe://example.org/team/env"}

    def test_no_address(self, make: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without an address the error names the variable."""
        monkeypatch.delenv("SHARDHOLD_ADDRESS", raising=False)
        with pytest.raises(shardhold.InvalidArgumentError, match="SHARDHOLD_ADDRESS is not set"):
            make()

    def test_no_identity(self, make: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a Workload API the error names the variable."""
        monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
        with pytest.raises(shardhold.IdentityUnavailableError, match=ENDPOINT_VARIABLE):
            make("127.0.0.1:1")

    @pytest.mark.parametrize("address", ["localhost", "https://nexus:8553", "nexus:port", ":8553", "nexus:8553/x"])
    def test_bad_address(self, make: MakeClient, address: str) -> None:
        """An address that is not host:port is refused."""
        with pytest.raises(shardhold.InvalidArgumentError, match="want host:port"):
            make(address)

    @pytest.mark.parametrize("timeout", [0, -1, 1e10, float("nan"), float("inf")])
    def test_bad_timeout(self, client: Client, timeout: float) -> None:
        """A time-out that is not above 0 and at most a day is refused: there is no call without a deadline."""
        with pytest.raises(shardhold.InvalidArgumentError, match="timeout"):
            client.get("a", timeout=timeout)

    def test_identity_of_the_caller_stays_open(self, make: MakeClient, nexus: Nexus, ca: Authority) -> None:
        """A client closes only the identity that it opened itself; once closed, it makes no call."""
        identity = FixedIdentity(ca.issue("/team/app"))
        client = make(nexus.address, identity)
        client.close()
        client.close()
        assert not identity.closed
        with pytest.raises(shardhold.ClientClosedError, match="closed"):
            client.get("a")

    def test_closed_during_a_call(self, client: Client, nexus: Nexus) -> None:
        """A call that `close` cuts off is a ClientClosedError, and is not made again."""
        waiting, go_on = threading.Event(), threading.Event()

        def answer(_: Any) -> Message:
            waiting.set()
            go_on.wait(at_most(10))
            return _secret()

        nexus.answers["GetSecret"] = answer
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(client.get, "a")
            assert waiting.wait(at_most(10))
            client.close()
            with pytest.raises(shardhold.ClientClosedError):
                reading.result(at_most(10))
        go_on.set()
        assert len(nexus.requests) == 1

    def test_nobody_there(self, nexus: Nexus, client: Client) -> None:
        """Where no nexus answers, the error says what to check."""
        nexus.stop()
        with pytest.raises(shardhold.UnavailableError) as caught:
            client.get("a", timeout=patience(0.3))
        assert caught.value.hint


class TestArguments:
    """Arguments that are refused before they leave the process."""

    @pytest.mark.parametrize("version", [-1, 2**64])
    def test_version(self, client: Client, version: int) -> None:
        """A version that no field can hold raises an error of ours."""
        with pytest.raises(shardhold.InvalidArgumentError):
            client.get("a", version=version)
        with pytest.raises(shardhold.InvalidArgumentError):
            client.put("a", {"value": b""}, expected_version=version)

    def test_request_id(self, client: Client) -> None:
        """A request id that is not 16 bytes is refused."""
        with pytest.raises(shardhold.InvalidArgumentError, match="got 3 bytes, want 16"):
            client.put("a", {"value": b""}, request_id=b"abc")

    def test_value_of_another_type(self, client: Client) -> None:
        """The error for a value that is neither bytes nor text names the field and does not show the value."""
        with pytest.raises(TypeError, match="'pin' is int, want bytes or str"):
            client.put("a", {"pin": 4711})  # type: ignore[dict-item]

    def test_text_that_is_no_unicode(self, client: Client) -> None:
        """The error for text that UTF-8 cannot hold contains nothing of it."""
        with pytest.raises(shardhold.InvalidArgumentError, match="the text of 'pin' is not Unicode") as caught:
            client.put("a", {"pin": "canary\ud800"})
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def _describe(method: Any) -> tuple[list[tuple[str, Any, Any]], str]:
    """Return the parameters of a method and its result, whether it is async or not."""
    signature = inspect.signature(method)
    parameters = [(name, one.kind, one.default) for name, one in signature.parameters.items()]
    return parameters, str(signature.return_annotation).replace("AsyncIterator", "Iterator")


def test_the_clients_are_twins() -> None:
    """Both clients have the same public methods, with the same parameters, kinds, defaults and results."""
    sync, asynchronous = (
        {name: method for name, method in vars(kind).items() if inspect.isfunction(method) and name[0] != "_"}
        for kind in (Client, AsyncClient)
    )
    assert set(sync) == set(asynchronous) == {*CALLS, "close"}
    for name, method in {**sync, "__init__": Client.__init__}.items():
        assert _describe(method) == _describe(getattr(AsyncClient, name)), name
    for name, method in asynchronous.items():
        assert inspect.iscoroutinefunction(method) != (name in ("list", "versions")), name


def test_public_names() -> None:
    """Every public name can be imported, and an unknown one is an AttributeError."""
    assert [name for name in shardhold.__all__ if getattr(shardhold, name, None) is None] == []
    assert set(dir(shardhold)) == set(shardhold.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        shardhold.nothing  # noqa: B018
