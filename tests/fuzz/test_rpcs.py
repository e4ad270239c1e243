"""Every RPC of nexus and keeper, given whatever a caller sends, after the parser of the real edge.

The callers are those that the handlers let in furthest. Each answer is one of the contract, or an error that blames the
request and not the server; the server then goes on as before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ShardholdError
from common.keys.protected import Level, ProtectedMemory
from common.keys.sealing import OneShotKey
from common.keys.statement import PUT_SHARD, Statement, StatementDesk
from common.server.edge import Call, Method, _parse, code_of
from keeper.service import KeeperService
from keeper.slots import ShardSlots
from keeper.v1 import keeper_pb2
from nexus.lifecycle.states import State
from shardhold.v1 import audit_pb2, cluster_pb2, policies_pb2, recovery_pb2, secrets_pb2
from tests.fuzz.budget import budget
from tests.fuzz.messages import Known, hostile_message
from tests.kit.authority import Authority
from tests.kit.fixed_identity import FixedIdentity
from tests.kit.keepers import CLUSTER_ID, make_put
from tests.kit.manual_clock import ManualClock
from tests.kit.marks import MarkMaker
from tests.nexus.cluster import found, open_store
from tests.nexus.core import AUDITOR, SUPERUSER, NexusCore, make_ready
from tests.nexus.founder import PUBLIC_KEY
from tests.nexus.played_keepers import PlayedKeeper

NEXUS_RPCS = [
    rpc.name
    for contract in (secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2, audit_pb2)
    for service in contract.DESCRIPTOR.services_by_name.values()
    for rpc in service.methods
]
KEEPER_RPCS = [rpc.name for rpc in keeper_pb2.DESCRIPTOR.services_by_name["KeeperService"].methods]
NEXUS = "spiffe://example.test/shardhold/nexus/n1"
STATES = [State.READY, State.SEALED, State.RECOVERING, State.INITIALISING]

# Codes that blame the server: a caller's bytes must never look like a fault or like damage.
_BLAMES_THE_SERVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def assert_blames_the_request(error: ShardholdError) -> None:
    assert code_of(error) not in _BLAMES_THE_SERVER, repr(error)


@dataclass
class Target:
    """A server whose methods are called the way the edge calls them."""

    methods: Sequence[Method]
    known: Known

    def find(self, rpc: str) -> Method:
        return next(method for method in self.methods if method.name.endswith(f"/{rpc}"))

    def send(self, rpc: str, caller: str, body: bytes) -> ShardholdError | None:
        """Answer *body*; return the code of the refusal, if any."""
        method = self.find(rpc)
        try:
            answer = method.handle(Call(caller, "ipv4:127.0.0.1:4711", 1.0), _parse(method.request.FromString, body))
        except ShardholdError as exc:
            assert_blames_the_request(exc)
            return exc
        assert type(answer) is method.response
        answer.SerializeToString()
        return None


@pytest.fixture(scope="module", params=STATES)
def state(request: pytest.FixtureRequest) -> State:
    """Return the state of the nexus, which no call here changes."""
    return State(request.param)


@pytest.fixture(scope="module")
def nexus(state: State, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """Return a nexus in that state, with a secret or an unseal session where it can have one."""
    folder = tmp_path_factory.mktemp("nexus")
    store, memory = open_store(folder), ProtectedMemory(highest=Level.LOCKED)
    known = {"recovery_public_key": PUBLIC_KEY}
    if state is State.INITIALISING:
        core = NexusCore(folder, store, memory, [PlayedKeeper(f"keeper-{number}") for number in (1, 2, 3)])
        core.lifecycle.enter(State.INITIALISING)
    else:
        cluster = found(store, memory, keepers=3, threshold=2)
        core = NexusCore(folder, store, memory, cluster.keepers())
        if state is State.READY:
            make_ready(core, cluster)
        else:
            core.bind(state)
    target = Target(core.list_methods(), known)
    if state is State.READY:
        put = secrets_pb2.PutSecretRequest(path="team/app/db", fields={"value": b"v"}, request_id=bytes(16))
        assert target.send("PutSecret", SUPERUSER.spiffe_id, put.SerializeToString()) is None
        known["request_id"] = put.request_id
    elif state is not State.INITIALISING:
        session = core.unseal.start(SUPERUSER).session_id
        signed = core.unseal.state_key(SUPERUSER, session, bytes(32))
        known |= {"session_id": session, "statement": signed.statement}
    yield target
    core.close()
    store.close()


@pytest.fixture(scope="module")
def keeper() -> Iterator[Target]:
    """Return a keeper that holds a shard and a mark."""
    memory = ProtectedMemory(lowest=Level.PLAIN)
    marks = MarkMaker(cluster_id=CLUSTER_ID)
    identity = FixedIdentity(Authority("example.test").issue("/shardhold/keeper/k1", dns="k1.keeper.shardhold"))
    service = KeeperService(
        ShardSlots(memory),
        desk=StatementDesk(ManualClock(), limit=10_000),
        memory=memory,
        identity=identity,
        boot_id=b"b" * 16,
        nexuses=[NEXUS],
    )
    target = Target(service.list_methods(), {})
    request = keeper_pb2.GetSealingKeyRequest(cluster_id=CLUSTER_ID, purpose=PUT_SHARD, nonce=bytes(32))
    signed = service.get_sealing_key(Call(NEXUS), request)
    put = make_put(Statement.decode(signed.statement), genesis=marks.genesis)
    service.put_shard(Call(NEXUS), put)
    mark = marks.make()
    message = keeper_pb2.RollbackMark(mark=mark.mark, signature=mark.signature, chain=mark.chain)
    service.put_mark(Call(NEXUS), keeper_pb2.PutMarkRequest(mark=message))
    target.known = {
        "cluster_id": CLUSTER_ID,
        "set_id": put.label.set_id,
        "genesis": marks.genesis,
        "public_key": OneShotKey().public_bytes,
        "mark": mark.mark,
        "signature": mark.signature,
        "chain": mark.chain[0],
    }
    yield target
    memory.wipe()


@pytest.mark.parametrize("rpc", NEXUS_RPCS)
@budget(0.6)
@given(data=st.data())
def test_nexus(nexus: Target, state: State, rpc: str, data: st.DataObject) -> None:
    """Every RPC is called in every state that does more than refuse it."""
    # A seal that is let through would end the state that the others are called in.
    caller = AUDITOR if rpc == "Seal" and state is not State.SEALED else SUPERUSER
    nexus.send(rpc, caller.spiffe_id, data.draw(hostile_message(nexus.find(rpc).request, nexus.known)))


@pytest.mark.parametrize("rpc", KEEPER_RPCS)
@budget(4)
@given(data=st.data())
def test_keeper(keeper: Target, rpc: str, data: st.DataObject) -> None:
    """Whatever a nexus, the only caller that a keeper listens to, sends it, the answer never blames the server."""
    keeper.send(rpc, NEXUS, data.draw(hostile_message(keeper.find(rpc).request, keeper.known)))


def test_the_nexus_is_in_its_state_still(nexus: Target, state: State) -> None:
    """After all these calls the nexus answers, and is still in its state."""
    answer = nexus.find("GetStatus").handle(Call(SUPERUSER.spiffe_id), cluster_pb2.GetStatusRequest())
    assert answer.state == cluster_pb2.State.Value(f"STATE_{state.name}")
    if state is State.READY:
        got = nexus.find("GetSecret").handle(
            Call(SUPERUSER.spiffe_id), secrets_pb2.GetSecretRequest(path="team/app/db", version=1)
        )
        assert got.fields["value"] == b"v"
