"""Operations on the root key of a real cluster: how tests begin one, interrupt one, and look at what it leaves."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc

from keeper.v1.keeper_pb2 import GetStatusRequest
from keeper.v1.keeper_pb2_grpc import KeeperServiceStub
from nexus.keys.operation.transitions import MAX_AGE
from pilot.dev.cluster import server_command
from pilot.dev.directory import Ports
from pilot.dev.identities import add_identities, server_identity
from pilot.dev.ports import HOST, choose_ports
from shardhold.v1 import backup_pb2
from shardhold.v1 import root_pb2 as pb
from shardhold.v1.backup_pb2_grpc import BackupServiceStub
from tests.cluster.ledger import Ledger
from tests.cluster.stored_root import StoredRoot
from tests.kit.cluster import Cluster
from tests.kit.errors import ClusterError
from tests.kit.patience import at_most, join, patience
from tests.kit.waiting import wait_until

TIMEOUT_S = 20.0
PAUSE_S = 0.05  # between two puts, so that the machine is not full of them
REASON = "drill"


class Operations:
    """What a test does with the root key of *cluster*, as its superuser, and what it finds at nexus and keepers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.ledger = Ledger(cluster.superuser)
        self.stored = StoredRoot(cluster.directory.data)

    def begin(
        self,
        depth: "pb.Depth.ValueType" = pb.DEPTH_RESHARE,
        *,
        operation_id: bytes = b"",
        wants_backup: bool = False,
        threshold: int = 0,
        add: Sequence[str] = (),
        remove: Sequence[str] = (),
        lost: Sequence[str] = (),
    ) -> pb.RootOperation:
        """Begin an operation; *add* names servers of this cluster.

        The age of the root key is no matter, and backups are none unless it *wants_backup*.
        """
        joining = [
            pb.NewKeeper(
                name=name,
                address=f"{HOST}:{self.cluster.dev.state.ports[name].grpc}",
                spiffe_id=server_identity(name).spiffe_id,
            )
            for name in add
        ]
        request = pb.StartOperationRequest(
            operation_id=operation_id or os.urandom(16),
            depth=depth,
            threshold=threshold,
            add=joining,
            remove=remove,
            lost=lost,
            reason=REASON,
            without_backup="" if wants_backup or depth == pb.DEPTH_RESHARE else REASON,
            force=depth == pb.DEPTH_ROTATE,
        )
        self.look()  # so that there is a connection: the call itself is sent once, or never
        return self.cluster.superuser.root.StartOperation(request, timeout=at_most(TIMEOUT_S)).operation

    def look(self) -> pb.GetOperationResponse:
        """Ask how the root key stands."""
        return self.cluster.superuser.root.GetOperation(
            pb.GetOperationRequest(), timeout=at_most(TIMEOUT_S), wait_for_ready=True
        )

    def abort(self) -> None:
        """Take the operation in progress back."""
        request = pb.AbortOperationRequest(operation_id=self.look().operation.operation_id)
        self.cluster.superuser.root.AbortOperation(request, timeout=at_most(TIMEOUT_S))

    def go_on(self, *, with_threshold: bool = False, lost: Sequence[str] = ()) -> None:
        """Let the operation in progress go on with less, or give keepers up when there is none."""
        request = pb.ContinueOperationRequest(
            operation_id=self.look().operation.operation_id, with_threshold=with_threshold, lost=lost
        )
        self.cluster.superuser.root.ContinueOperation(request, timeout=at_most(TIMEOUT_S))

    def reshare(
        self, *, threshold: int = 0, add: Sequence[str] = (), remove: Sequence[str] = (), lost: Sequence[str] = ()
    ) -> pb.EndedOperation:
        """Reshare to the end."""
        begun = self.begin(threshold=threshold, add=add, remove=remove, lost=lost)
        ended = self.wait_ended()
        assert ended.operation_id == begun.operation_id
        assert ended.outcome == pb.OUTCOME_SETTLED, ended
        return ended

    def rotate(self, depth: "pb.Depth.ValueType" = pb.DEPTH_ROTATE) -> pb.EndedOperation:
        """Replace the root key, to the end of the operation; the keyring job goes on behind it."""
        begun = self.begin(depth)
        ended = self.wait_ended()
        assert (ended.operation_id, ended.outcome) == (begun.operation_id, pb.OUTCOME_SETTLED), ended
        return ended

    def back_up(self) -> None:
        """Make a backup, and verify it."""
        backups = BackupServiceStub(self.cluster.superuser.channel)
        name = backups.CreateBackup(backup_pb2.CreateBackupRequest(), timeout=at_most(TIMEOUT_S)).backup.name
        backups.VerifyBackup(backup_pb2.VerifyBackupRequest(name=name), timeout=at_most(TIMEOUT_S))

    def wait_ended(self) -> pb.EndedOperation:
        """Wait until no operation is in progress, and return how the last one ended."""
        found = pb.GetOperationResponse()

        def has_ended() -> bool:
            nonlocal found
            try:
                found = self.look()
            except grpc.RpcError:  # it is not ready yet
                return False
            return not found.HasField("operation")

        self.cluster.wait("the operation has ended", has_ended, timeout=90)
        return found.last

    def wait_refused(self) -> tuple[int, int]:
        """Wait until nothing but a newer mark blocks the nexus, and return where its store stands."""
        self.cluster.wait_status(
            "the older store is refused",
            lambda status: (
                status["blocked_by"] and all("older than a rollback mark" in why for why in status["blocked_by"])
            ),
        )
        status = self.cluster.superuser.get_status()
        return status.timeline, status.revision

    def wait_waiting(self, words: str) -> pb.RootOperation:
        """Wait until the operation in progress waits for something that *words* are a part of."""
        self.cluster.wait(f"it waits for {words}", lambda: words in self.look().operation.waits_for)
        return self.look().operation

    def list_held(self, name: str) -> set[bytes] | None:
        """Ask a keeper for the ids of the sets that it holds; None: it does not answer."""
        try:
            keeper = KeeperServiceStub(self.cluster.people.reach_keeper(name))
            answer = keeper.GetStatus(GetStatusRequest(), timeout=patience(2))
        except grpc.RpcError:
            return None
        return {one.label.set_id for one in answer.sets}

    def check_world(self, *, without: Sequence[str] = (), is_everybody: bool = True) -> None:
        """Wait until nothing is left of any operation, and compare what is there with what has to be.

        One set is current, and its members hold it and nothing else; *without* names members that do not answer. Rows
        of dead sets are gone, unless *is_everybody* says that some keeper never heard of it. One root key and one KEK
        are left, and of earlier ones their history alone. The ledger is right.
        """
        self.wait_ended()
        cluster = self.cluster
        current = self.stored.find_current()
        for member in current.members:
            if member.name not in without:
                cluster.wait(
                    f"{member.name} holds set {current.set_number} only",
                    lambda name=member.name: self.list_held(name) == {current.set_id},  # type: ignore[misc]
                )
        if is_everybody:
            cluster.wait("the rows of dead sets are gone", lambda: [*self.stored.load_sets()] == [current.set_number])
        self.wait_rest()
        assert self.stored.find_current() == current
        self.ledger.check()

    def wait_rest(self) -> None:
        """Wait until older KEKs are gone, and what they and older root keys wrapped is overwritten."""
        unrest = ""

        def has_come() -> bool:
            nonlocal unrest
            unrest = self.stored.find_unrest()
            return not unrest

        try:
            self.cluster.wait("nothing is left of earlier keys", has_come, timeout=60)
        except ClusterError as exc:
            raise ClusterError(f"{exc}: {unrest}") from exc
        self.cluster.wait("the keyring job is over", lambda: not self.look().HasField("job"))

    def arm(self, name: str, failpoint: str) -> None:
        """Kill a server, if it runs, and start it with a failpoint, without waiting."""
        dev = self.cluster.dev
        if dev.is_alive(name):
            self.cluster.kill(name)
        variable = "SHARDHOLD_NEXUS__FAILPOINT" if name == "nexus" else "SHARDHOLD_KEEPER__FAILPOINT"
        command = ["env", f"{variable}={failpoint}", *server_command(dev.directory, name)]
        self.cluster.processes.start_instead(name, command)

    def wait_killed(self, name: str, failpoint: str) -> None:
        """Wait until a failpoint has killed a server, which did not end by anything else."""
        dev = self.cluster.dev
        self.cluster.wait(f"{failpoint} kills {name}", lambda: not dev.is_alive(name))
        code = dev.processes.find_exit_code(dev.state.processes[name])
        assert code == -signal.SIGKILL, f"{name} ended with {code}, want to be killed at {failpoint}"

    def wait_asleep(self, name: str) -> None:
        """Wait until a server has been stopped, as a failpoint does."""
        stat = Path(f"/proc/{self.cluster.dev.state.processes[name].pid}/stat")
        self.cluster.wait(f"{name} sleeps", lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")

    def add_server(self, name: str) -> None:
        """Start a keeper that the cluster does not have yet."""
        dev = self.cluster.dev
        taken = {port for pair in dev.state.ports.values() for port in (pair.grpc, pair.http)}
        grpc_port, http_port = choose_ports(2, taken=taken, within=dev.port_range)
        dev.state.ports[name] = Ports(grpc=grpc_port, http=http_port)
        add_identities(dev.directory, server_identity(name))
        self.cluster.run(name)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Put secrets for as long as the block lasts, each noted with what came of it."""
        stop = threading.Event()

        def write() -> None:
            while not stop.wait(PAUSE_S):
                self.ledger.put()

        self.ledger.turn()
        thread = threading.Thread(target=write, name="writer", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            join(thread, 60)


def wait_proofs_old() -> None:
    """Let pass as long as the proof of a holder is good for before a flip."""
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > MAX_AGE, what="the proofs are old", seconds=2 * MAX_AGE)
