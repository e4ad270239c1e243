"""One keeper over mTLS gRPC: messages of keeper.v1 to the core's `KeeperLink` and back.

The handshake checks the keeper's server name, and key material is sealed to its exact SPIFFE ID. None of its answers is
trusted: this module checks size and form, and the core checks the content.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from common.clock import Clock
from common.errors import (
    BadShardError,
    DecryptionError,
    DeniedError,
    InvalidArgumentError,
    KeeperTooOldError,
    KeeperUnreachableError,
    NotFoundError,
    SetNotNewerError,
    ShardholdError,
    WrongStateError,
)
from common.forms.chain import MAX_GENESIS_SIZE, MAX_LINK_SIZE, MAX_RECORDS
from common.forms.delivery import (
    PUT_FORMAT,
    UNBOUND_FORMAT,
    SetLabel,
    build_fetch_info,
    build_put_info,
    read_label,
    write_label,
)
from common.forms.epoch import NO_EPOCH, StoreEpoch
from common.forms.mark import MAX_SIZE, SIGNATURE_SIZE, SignedMark
from common.keys import shamir
from common.keys.protected import ProtectedBuffer, random_into
from common.keys.sealing import OneShotKey, seal
from common.keys.statement import ID_SIZE, NONCE_SIZE, PUT_SHARD, SignedStatement, verify
from keeper.v1 import keeper_pb2 as pb
from keeper.v1.keeper_pb2_grpc import KeeperServiceStub
from nexus.keepers.link import KeeperReport, ReportedSet
from shardhold.channel import PinnedChannel
from shardhold.identity import IdentitySource, IdentityUnavailableError, Svid

_MAX_ANSWER = 640 * 1024  # bytes; the longest honest one is a rollback mark with as long a chain as there may be
_MAX_SETS = 16  # more than any keeper holds
_GENESIS_SIZES = (0, 32)  # bytes; 0: not pinned yet
_CHAIN_SIZES = (0, 32)  # bytes of a chain's digest; 0: there is none
_MAX_WORDS = 300  # characters of what a keeper says that go into our errors and logs

_ERRORS: dict[grpc.StatusCode, type[ShardholdError]] = {
    grpc.StatusCode.UNAVAILABLE: KeeperUnreachableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: KeeperUnreachableError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: KeeperUnreachableError,
    grpc.StatusCode.CANCELLED: KeeperUnreachableError,
    grpc.StatusCode.PERMISSION_DENIED: DeniedError,
    grpc.StatusCode.UNAUTHENTICATED: DeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
}
"""Every other code is a refusal: WrongStateError."""

_REFUSALS: dict[str, type[WrongStateError]] = {SetNotNewerError.reason: SetNotNewerError}
"""Refusals that somebody acts on, by the reason that the keeper gives."""

_MARK_ERRORS = _ERRORS | {grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError}

M = TypeVar("M", bound=Message)


class GrpcKeeperLink:
    """One keeper. Thread-safe. Connects at the first call and reconnects by itself, with the SVID of *identity*.

    Args:
        name: Of the keeper; its certificate has the DNS name NAME.keeper.shardhold.
        address: host:port.
        spiffe_id: The exact ID that shards are sealed to.
        identity: Of this nexus.
        clock: Dates the check of statements.
    """

    def __init__(self, *, name: str, address: str, spiffe_id: str, identity: IdentitySource, clock: Clock) -> None:
        self._name = name
        self._address = address
        self._spiffe_id = spiffe_id
        self._identity = identity
        self._clock = clock
        self._channel = PinnedChannel(
            address,
            identity,
            server_name=f"{name}.keeper.shardhold",
            options=[("grpc.max_receive_message_length", _MAX_ANSWER)],
        )
        self._stub = KeeperServiceStub(self._channel)

    @property
    def name(self) -> str:
        """Name of the keeper."""
        return self._name

    @property
    def address(self) -> str:
        """host:port."""
        return self._address

    def fetch_report(self, *, timeout: float) -> KeeperReport:
        """Fetch what the keeper says of itself."""
        answer = self._call(self._stub.GetStatus, pb.GetStatusRequest(), timeout)
        if len(answer.sets) > _MAX_SETS:
            raise WrongStateError(f"keeper {self._name} says that it holds {len(answer.sets)} sets, want at most 2")
        if len(answer.cluster_id) not in (0, ID_SIZE) or len(answer.genesis) not in _GENESIS_SIZES:
            raise WrongStateError(f"keeper {self._name} names a cluster or genesis of the wrong size")
        if len(answer.chain.digest) not in _CHAIN_SIZES:
            raise WrongStateError(f"keeper {self._name} names a chain by {len(answer.chain.digest)} bytes, want 32")
        return KeeperReport(
            boot_id=self._read_boot_id(answer),
            cluster_id=answer.cluster_id,
            genesis=answer.genesis,
            sets=tuple(ReportedSet(read_label(held.label), held.x) for held in answer.sets),
            version=answer.version[:_MAX_WORDS],
            memory_protection=answer.memory_protection,
            epoch=StoreEpoch(answer.epoch.timeline, answer.epoch.epoch),
            chain_seq=answer.chain.seq,
            chain_digest=answer.chain.digest,
            put_format=answer.put_format or UNBOUND_FORMAT,
        )

    def fetch_shard(self, cluster_id: bytes, set_id: bytes, *, into: ProtectedBuffer, timeout: float) -> bytes:
        """Fetch the keeper's shard, 33 bytes, into protected memory, and return the keeper's boot id."""
        nexus_id = self._find_svid().spiffe_id
        key = OneShotKey()
        request = pb.FetchShardRequest(cluster_id=cluster_id, set_id=set_id, public_key=key.public_bytes)
        answer = self._call(self._stub.FetchShard, request, timeout)
        boot_id = self._read_boot_id(answer)
        label = read_label(answer.label)
        if (label.cluster_id, label.set_id) != (cluster_id, set_id):
            raise BadShardError(f"keeper {self._name} answered with a shard of another set")
        info = build_fetch_info(
            label,
            x=answer.x,
            boot_id=boot_id,
            keeper_id=self._spiffe_id,
            nexus_id=nexus_id,
            public_key=key.public_bytes,
        )
        try:
            key.open(answer.sealed_shard, info=info, into=into.view)
        except DecryptionError as exc:
            raise BadShardError(f"what keeper {self._name} sent does not open") from exc
        if into.view[-1] != answer.x:
            into.view[:] = bytes(len(into))
            raise BadShardError(f"keeper {self._name} sent a shard at another x than it says")
        return boot_id

    def put_shard(
        self,
        label: SetLabel,
        shard: ProtectedBuffer,
        *,
        commitment: bytes,
        current_set_id: bytes,
        epoch: StoreEpoch,
        put_format: int,
        timeout: float,
    ) -> bytes:
        """Give the keeper its shard, sealed to its exact SPIFFE ID, and return the keeper's boot id."""
        put_format = min(put_format, PUT_FORMAT)
        if put_format == UNBOUND_FORMAT and not current_set_id:
            raise KeeperTooOldError(f"keeper {self._name} is too old to join the current keepers: upgrade it first")
        epoch = epoch if epoch.epoch else NO_EPOCH  # both sides bind what is sent
        deadline = self._clock.monotonic() + timeout
        svid = self._find_svid()
        nonce = bytearray(NONCE_SIZE)
        random_into(nonce)
        request = pb.GetSealingKeyRequest(cluster_id=label.cluster_id, purpose=PUT_SHARD, nonce=bytes(nonce))
        answer = self._call(self._stub.GetSealingKey, request, timeout)
        statement = verify(
            SignedStatement(answer.statement, answer.signature, tuple(answer.certificates)),
            roots=svid.bundle(),
            cluster_id=label.cluster_id,
            issuer=self._spiffe_id,
            audience=svid.spiffe_id,
            purpose=PUT_SHARD,
            nonce=bytes(nonce),
            now=self._clock.now(),
        )
        x = shard.view[shamir.SHARD_SIZE - 1]
        digest = statement.digest()
        info = build_put_info(
            label,
            statement_digest=digest,
            x=x,
            commitment=commitment,
            current_set_id=current_set_id,
            epoch=epoch,
            put_format=put_format,
        )
        put = pb.PutShardRequest(
            label=write_label(label, pb.SetLabel()),
            x=x,
            statement_digest=digest,
            sealed_shard=seal(shard.view, recipient=statement.public_key, info=info),
            commitment=commitment,
            current_set_id=current_set_id,
            epoch=_write_epoch(epoch),
            format=put_format,
        )
        return self._read_boot_id(self._call(self._stub.PutShard, put, deadline - self._clock.monotonic()))

    def drop_set(self, cluster_id: bytes, set_id: bytes, *, epoch: StoreEpoch, timeout: float) -> bytes:
        """Make the keeper forget a set, and return the keeper's boot id."""
        request = pb.DropSetRequest(cluster_id=cluster_id, set_id=set_id, epoch=_write_epoch(epoch))
        return self._read_boot_id(self._call(self._stub.DropSet, request, timeout))

    def put_mark(self, mark: SignedMark, *, epoch: StoreEpoch, timeout: float, known: bytes = b"") -> SignedMark | None:
        """Give the keeper a rollback mark; it keeps the newest, and returns its own when that is newer.

        *known* is the `chain_digest` of its report: what it has verified of the chain is not sent again.
        """
        deadline = self._clock.monotonic() + timeout
        answer = self._put_mark(mark, mark.find_rest(known), epoch, timeout)
        if answer.wants_whole_chain:  # it was started anew since its report
            answer = self._put_mark(mark, (b"", mark.chain), epoch, deadline - self._clock.monotonic())
            if answer.wants_whole_chain:
                raise WrongStateError(f"keeper {self._name} wants more of a chain than there is")
        return self._read_mark(answer.newer) if answer.HasField("newer") else None

    def fetch_mark(self, cluster_id: bytes, *, timeout: float) -> SignedMark | None:
        """Fetch the rollback mark that the keeper remembers, as it is; None when there is none.

        Its sizes are right; nothing else of it is verified.
        """
        try:
            answer = self._call(self._stub.GetMark, pb.GetMarkRequest(cluster_id=cluster_id), timeout)
        except NotFoundError:
            return None
        return self._read_mark(answer.mark)

    def close(self) -> None:
        """Cancel calls in flight and close the connection. Idempotent."""
        self._channel.close()

    def _call(
        self,
        method: "grpc.UnaryUnaryMultiCallable[Any, M]",
        request: Message,
        timeout: float,
        *,
        errors: Mapping[grpc.StatusCode, type[ShardholdError]] = _ERRORS,
    ) -> M:
        if timeout <= 0:
            raise KeeperUnreachableError(f"keeper {self._name} at {self._address} was too slow")
        try:
            return method(request, timeout=timeout)
        except grpc.RpcError as exc:
            error = errors.get(exc.code()) or _REFUSALS.get(_read_reason(exc), WrongStateError)
            words = (exc.details() or exc.code().name)[:_MAX_WORDS]
            raise error(f"keeper {self._name} at {self._address}: {words}") from exc
        except IdentityUnavailableError as exc:
            raise KeeperUnreachableError(
                f"keeper {self._name} at {self._address}: no SVID to call with: {exc}"
            ) from exc
        except ValueError as exc:  # how a closed channel answers
            raise KeeperUnreachableError(f"keeper {self._name} at {self._address}: {exc}") from exc

    def _put_mark(
        self, mark: SignedMark, rest: tuple[bytes, tuple[bytes, ...]], epoch: StoreEpoch, timeout: float
    ) -> pb.PutMarkResponse:
        follows, chain = rest
        message = pb.RollbackMark(mark=mark.mark, signature=mark.signature, chain=chain)
        request = pb.PutMarkRequest(mark=message, epoch=_write_epoch(epoch), follows=follows)
        return self._call(self._stub.PutMark, request, timeout, errors=_MARK_ERRORS)

    def _find_svid(self) -> Svid:
        try:
            return self._identity.current()
        except IdentityUnavailableError as exc:
            raise KeeperUnreachableError(f"keeper {self._name}: no SVID to call with: {exc}") from exc

    def _read_mark(self, mark: pb.RollbackMark) -> SignedMark:
        if (
            not 0 < len(mark.mark) <= MAX_SIZE
            or len(mark.signature) != SIGNATURE_SIZE
            or not 0 < len(mark.chain) <= MAX_RECORDS
            or len(mark.chain[0]) > MAX_GENESIS_SIZE
            or any(len(record) > MAX_LINK_SIZE for record in mark.chain[1:])
        ):
            raise WrongStateError(f"keeper {self._name} gave a rollback mark with a part of the wrong size")
        return SignedMark(mark.mark, mark.signature, tuple(mark.chain))

    def _read_boot_id(
        self, answer: pb.GetStatusResponse | pb.FetchShardResponse | pb.PutShardResponse | pb.DropSetResponse
    ) -> bytes:
        if len(answer.boot_id) != ID_SIZE:
            raise WrongStateError(f"keeper {self._name} has a boot id of {len(answer.boot_id)} bytes, want {ID_SIZE}")
        return answer.boot_id


def _read_reason(error: grpc.RpcError) -> str:
    """Return the reason of the keeper's ErrorInfo; empty if there is none that decodes."""
    found = [one.value for one in error.trailing_metadata() or () if one.key == "grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    try:
        details = status_pb2.Status.FromString(found[0]).details if found else ()
        return str(info.reason) if any(detail.Unpack(info) for detail in details) else ""
    except DecodeError:
        return ""


def _write_epoch(epoch: StoreEpoch) -> pb.StoreEpoch | None:
    return pb.StoreEpoch(timeline=epoch.timeline, epoch=epoch.epoch) if epoch.epoch else None
