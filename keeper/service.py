"""The keeper's RPCs as plain functions: messages to rules and back.

Shards come and go sealed, so that gRPC's buffers only ever hold ciphertext; opened shards are in protected memory.
Only the nexuses that the configuration names may call.
"""

from collections.abc import Callable, Collection
from typing import Any

import structlog
from google.protobuf.message import Message

from common.errors import DecryptionError, DeniedError, InvalidArgumentError, StatementError
from common.failpoint import around
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
from common.forms.mark import SignedMark
from common.keys import shamir
from common.keys.protected import ProtectedMemory
from common.keys.sealing import KEY_SIZE, OVERHEAD, seal
from common.keys.statement import ID_SIZE, NONCE_SIZE, PUT_SHARD, StatementDesk
from common.server.edge import Call, Method
from common.server.identity import IdentitySource
from keeper import __version__
from keeper.fence import EpochFence
from keeper.mark_slot import MarkSlot
from keeper.slots import HeldSet, ShardSlots
from keeper.v1 import keeper_pb2 as pb

_DIGEST_SIZE = 32  # bytes of SHA-256: statement digests, commitments, the genesis fingerprint

log = structlog.get_logger()


class KeeperService:
    """Answers every RPC of keeper.v1.KeeperService. Thread-safe.

    Args:
        slots: The rules of shards, and what is held.
        desk: Keeps the one-shot keys of open statements.
        memory: For shards on their way.
        identity: Signs statements; its SPIFFE ID is bound into what is sealed.
        boot_id: 16 random bytes of this start.
        nexuses: The exact SPIFFE IDs that may call.
    """

    def __init__(
        self,
        slots: ShardSlots,
        *,
        desk: StatementDesk,
        memory: ProtectedMemory,
        identity: IdentitySource,
        boot_id: bytes,
        nexuses: Collection[str],
    ) -> None:
        self._slots = slots
        self._mark = MarkSlot()
        self._fence = EpochFence()
        self._desk = desk
        self._memory = memory
        self._identity = identity
        self._boot_id = boot_id
        self._nexuses = frozenset(nexuses)

    def list_methods(self) -> list[Method]:
        """Return the table for `common.server.edge`."""
        return [
            self._bind("GetSealingKey", pb.GetSealingKeyRequest, pb.GetSealingKeyResponse, self.get_sealing_key),
            self._bind("PutShard", pb.PutShardRequest, pb.PutShardResponse, self.put_shard),
            self._bind("DropSet", pb.DropSetRequest, pb.DropSetResponse, self.drop_set),
            self._bind("FetchShard", pb.FetchShardRequest, pb.FetchShardResponse, self.fetch_shard),
            self._bind("PutMark", pb.PutMarkRequest, pb.PutMarkResponse, self.put_mark),
            self._bind("GetMark", pb.GetMarkRequest, pb.GetMarkResponse, self.get_mark),
            self._bind("GetStatus", pb.GetStatusRequest, pb.GetStatusResponse, self.get_status),
        ]

    def get_sealing_key(self, call: Call, request: pb.GetSealingKeyRequest) -> pb.GetSealingKeyResponse:
        """State a one-shot key for the caller."""
        _check_sizes(cluster_id=(request.cluster_id, ID_SIZE), nonce=(request.nonce, NONCE_SIZE))
        if request.purpose != PUT_SHARD:
            raise InvalidArgumentError(f"purpose is {request.purpose[:64]!r}, want {PUT_SHARD!r}")
        signed = self._desk.issue(
            cluster_id=request.cluster_id,
            audience=call.caller,
            purpose=request.purpose,
            nonce=request.nonce,
            boot_id=self._boot_id,
            svid=self._identity.current(),
        )
        return pb.GetSealingKeyResponse(
            statement=signed.statement, signature=signed.signature, certificates=signed.certificates
        )

    def put_shard(self, call: Call, request: pb.PutShardRequest) -> pb.PutShardResponse:
        """Open a shard and give it to the rules. Its statement is used up, whatever they say."""
        label = _check_label(request)
        if not 1 <= request.x <= shamir.MAX_SHARDS:
            raise InvalidArgumentError(f"x is {request.x}, want 1 to {shamir.MAX_SHARDS}")
        _check_sizes(
            statement_digest=(request.statement_digest, _DIGEST_SIZE),
            sealed_shard=(request.sealed_shard, shamir.SHARD_SIZE + OVERHEAD),
            commitment=(request.commitment, _DIGEST_SIZE),
        )
        put_format, epoch = _check_format(request), _read_epoch(request.epoch)
        statement, key = self._desk.take(request.statement_digest)
        if (statement.audience, statement.cluster_id, statement.purpose) != (call.caller, label.cluster_id, PUT_SHARD):
            key.forget()
            raise StatementError("statement is for another caller, cluster or purpose")
        info = build_put_info(
            label,
            statement_digest=request.statement_digest,
            x=request.x,
            commitment=request.commitment,
            current_set_id=request.current_set_id,
            epoch=epoch,
            put_format=put_format,
        )
        with self._memory.allocate(shamir.SHARD_SIZE) as shard:
            try:
                key.open(request.sealed_shard, info=info, into=shard.view)
            except DecryptionError as exc:
                raise InvalidArgumentError("sealed_shard does not open: changed, or sealed for something else") from exc
            with self._fence.passing(epoch), around("put.store"):
                self._slots.put(
                    label,
                    shard.view,
                    x=request.x,
                    commitment=request.commitment,
                    current_set_id=request.current_set_id,
                )
        log.info("shard held", set_number=label.set_number, generation=label.generation, x=request.x, nexus=call.caller)
        return pb.PutShardResponse(boot_id=self._boot_id)

    def drop_set(self, call: Call, request: pb.DropSetRequest) -> pb.DropSetResponse:
        """Forget a set."""
        _check_sizes(cluster_id=(request.cluster_id, ID_SIZE), set_id=(request.set_id, ID_SIZE))
        epoch = _read_epoch(request.epoch) if self._slots.pin else NO_EPOCH
        with self._fence.passing(epoch), around("drop.wipe"):
            dropped = self._slots.drop(request.cluster_id, request.set_id)
        if dropped:
            log.info("set dropped", set_id=request.set_id.hex(), nexus=call.caller)
        return pb.DropSetResponse(boot_id=self._boot_id, dropped=dropped)

    def fetch_shard(self, call: Call, request: pb.FetchShardRequest) -> pb.FetchShardResponse:
        """Seal a shard to the caller's one-shot key; mTLS says whose key it is."""
        _check_sizes(
            cluster_id=(request.cluster_id, ID_SIZE),
            set_id=(request.set_id, ID_SIZE),
            public_key=(request.public_key, KEY_SIZE),
        )
        with self._memory.allocate(shamir.SHARD_SIZE) as shard, around("fetch.answer"):
            held = self._slots.copy_shard(request.cluster_id, request.set_id, into=shard.view)
            info = build_fetch_info(
                held.label,
                x=held.x,
                boot_id=self._boot_id,
                keeper_id=self._identity.current().spiffe_id,
                nexus_id=call.caller,
                public_key=request.public_key,
            )
            sealed = seal(shard.view, recipient=request.public_key, info=info)
        log.info("shard given", set_number=held.label.set_number, nexus=call.caller)
        return pb.FetchShardResponse(
            label=write_label(held.label, pb.SetLabel()), x=held.x, sealed_shard=sealed, boot_id=self._boot_id
        )

    def put_mark(self, call: Call, request: pb.PutMarkRequest) -> pb.PutMarkResponse:
        """Remember a rollback mark, if it verifies and is newer; tell a nexus that gave an older one."""
        if not request.HasField("mark"):
            raise InvalidArgumentError("mark is missing")
        mark = request.mark
        chain = self._mark.complete(mark.chain, follows=request.follows)
        if chain is None:
            return pb.PutMarkResponse(boot_id=self._boot_id, wants_whole_chain=True)
        signed = SignedMark(mark.mark, mark.signature, chain)
        with self._fence.passing(_read_epoch(request.epoch)), around("mark.store"):
            newer = self._mark.put(signed, pin=self._slots.pin)
        return pb.PutMarkResponse(boot_id=self._boot_id, newer=_write_mark(newer) if newer else None)

    def get_mark(self, call: Call, request: pb.GetMarkRequest) -> pb.GetMarkResponse:
        """Give the rollback mark back."""
        _check_sizes(cluster_id=(request.cluster_id, ID_SIZE))
        held = self._mark.get(request.cluster_id)
        return pb.GetMarkResponse(mark=_write_mark(held), boot_id=self._boot_id)

    def get_status(self, call: Call, request: pb.GetStatusRequest) -> pb.GetStatusResponse:
        """Say what is held."""
        pin, epoch, chain = self._slots.pin, self._fence.highest, self._mark.chain
        return pb.GetStatusResponse(
            boot_id=self._boot_id,
            cluster_id=pin.cluster_id if pin else b"",
            genesis=pin.genesis if pin else b"",
            sets=[_write_held(held) for held in self._slots.list_held()],
            version=__version__,
            memory_protection=self._memory.level,
            epoch=pb.StoreEpoch(timeline=epoch.timeline, epoch=epoch.epoch) if epoch.epoch else None,
            chain=pb.VerifiedChain(seq=chain.seq, digest=chain.digest) if chain else None,
            put_format=PUT_FORMAT,
        )

    def _bind(
        self, rpc: str, request: type[Message], response: type[Message], answer: Callable[[Call, Any], Message]
    ) -> Method:
        def answer_nexus(call: Call, message: Message) -> Message:
            if call.caller not in self._nexuses:
                raise DeniedError(f"{call.caller} may not call {rpc}: it is not a nexus of this keeper")
            return answer(call, message)

        return Method(f"/keeper.v1.KeeperService/{rpc}", request, response, answer_nexus)


def _check_sizes(**parts: tuple[bytes, int]) -> None:
    for name, (part, size) in parts.items():
        if len(part) != size:
            raise InvalidArgumentError(f"{name} is {len(part)} bytes, want {size}")


def _check_label(request: pb.PutShardRequest) -> SetLabel:
    if not request.HasField("label"):
        raise InvalidArgumentError("label is missing")
    label = request.label
    _check_sizes(
        **{
            "label.cluster_id": (label.cluster_id, ID_SIZE),
            "label.genesis": (label.genesis, _DIGEST_SIZE),
            "label.set_id": (label.set_id, ID_SIZE),
        }
    )
    for name in ("generation", "set_number"):
        if not getattr(label, name):
            raise InvalidArgumentError(f"label.{name} is 0, want 1 or more")
    return read_label(label)


def _check_format(request: pb.PutShardRequest) -> int:
    put_format = request.format or UNBOUND_FORMAT
    if put_format not in (UNBOUND_FORMAT, PUT_FORMAT):
        raise InvalidArgumentError(f"format is {put_format}, want at most {PUT_FORMAT}")
    if put_format == UNBOUND_FORMAT or request.current_set_id:
        _check_sizes(current_set_id=(request.current_set_id, ID_SIZE))
    return put_format


def _write_held(held: HeldSet) -> pb.HeldSet:
    return pb.HeldSet(label=write_label(held.label, pb.SetLabel()), x=held.x)


def _write_mark(held: SignedMark) -> pb.RollbackMark:
    return pb.RollbackMark(mark=held.mark, signature=held.signature, chain=held.chain)


def _read_epoch(message: pb.StoreEpoch) -> StoreEpoch:
    return StoreEpoch(message.timeline, message.epoch)
