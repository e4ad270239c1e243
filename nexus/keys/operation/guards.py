"""What a transition asks before it changes anything. Each guard returns why it refuses, or None."""

from collections.abc import Mapping, Sequence

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation.evidence import Holding, Order, Proof, Staged
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Driver, OperationRecord, Step, Ticket, WaiverKind
from nexus.keys.operation.refusal import Reason, Refused

BEFORE_FLIP = (Step.PREPARED, Step.DISTRIBUTED)


def find_operation(facts: Facts, ticket: Ticket) -> OperationRecord | Refused:
    """Return the operation that *ticket* names, as it was then."""
    if facts.meta.sealed:
        return Refused(Reason.SEALED, "the cluster is sealed")
    if records.OPERATION in facts.damaged:
        return Refused(Reason.CONTROL_ROW_DAMAGED, "control row operation/current does not verify")
    record = facts.operation
    if record is None:
        return Refused(Reason.NO_OPERATION, "no operation is in progress")
    if record.ticket != ticket:
        text = (
            f"the operation is {record.step} at epoch {record.fence}, and was expected {ticket.step} at {ticket.fence}"
        )
        return Refused(Reason.OPERATION_MOVED, text)
    return record


def find_driven(facts: Facts, ticket: Ticket, driver: Driver, step: Step) -> OperationRecord | Refused:
    """Return the operation that *ticket* names, if *driver* carries it out and it is at *step*."""
    record = find_operation(facts, ticket)
    if isinstance(record, Refused):
        return record
    if record.driver != driver:
        return Refused(Reason.OPERATION_MOVED, f"another process of {record.driver.nexus} carries the operation out")
    if record.step is not step:
        return Refused(Reason.OPERATION_MOVED, f"the operation is {record.step}, want {step}")
    return record


def check_ordered(facts: Facts, order: Order, staged: Staged) -> Refused | None:
    """Ask whether *staged* is what was ordered."""
    names = tuple(member.name for member in staged.shard_set.members)
    if sorted(names) != sorted(order.keepers) or staged.shard_set.threshold != order.threshold:
        return Refused(Reason.STAGED_INVALID, "the new set has other members, or another threshold, than ordered")
    if (staged.key is not None) is not order.depth.renews_key:
        return Refused(Reason.STAGED_INVALID, f"a {order.depth} comes {'with' if staged.key else 'without'} a new key")
    if staged.shard_set.timeline != facts.meta.timeline:
        return Refused(Reason.STAGED_INVALID, f"the new set is of timeline {staged.shard_set.timeline}")
    return None


def check_proof(record: OperationRecord, proof: Proof | None, steps: Sequence[Step]) -> Refused | None:
    """Ask for the proof of this operation's set, by its driver of now, from shards fetched at one of *steps*."""
    if proof is None:
        return Refused(Reason.NOT_PROVED, f"keepers have not brought set {record.target.set_number} back")
    wanted = (record.id, record.target.set_number, record.driver)
    if (proof.operation_id, proof.set_number, proof.driver) != wanted or proof.step not in steps:
        return Refused(Reason.NOT_PROVED, "the proof is of another operation, set, process or step")
    return None


def count_wanted(facts: Facts, record: OperationRecord) -> int:
    """Return how many holders are wanted before the flip: the quorum, or the threshold on the operator's word."""
    pending = facts.sets.get(record.target.set_number)
    if pending is not None and record.waives(WaiverKind.THRESHOLD):
        return pending.threshold
    return record.quorum


def check_holders(facts: Facts, record: OperationRecord, holders: Mapping[str, Holding], wanted: int) -> Refused | None:
    """Ask for *wanted* members of the new set among *holders*."""
    members = {member.name for member in facts.sets[record.target.set_number].members}
    count = len(members.intersection(holders))
    if count < wanted:
        text = f"{count} of {len(members)} keepers hold set {record.target.set_number}, want {wanted}"
        return Refused(Reason.HOLDERS_SHORT, text)
    return None


def check_target(facts: Facts, record: OperationRecord) -> Refused | None:
    """Ask whether all that the operation has staged is there, and what it replaces is current."""
    if facts.current != record.source:
        return Refused(Reason.CONTROL_ROW_DAMAGED, "what is current is not what the operation replaces")
    pending = facts.sets.get(record.target.set_number)
    if pending is None or pending.state is not records.SetState.PENDING:
        return Refused(Reason.CONTROL_ROW_DAMAGED, f"set {record.target.set_number} is not pending")
    if not record.depth.renews_key:
        return None
    number = record.target.generation
    generation = facts.generations.get(number)
    if generation is None or generation.state is not records.GenerationState.PENDING:
        return Refused(Reason.CONTROL_ROW_DAMAGED, f"generation {number} is not pending")
    wanted = [
        (records.KEYRING, str(number)),
        (records.ESCROW, str(number)),
        (records.CANARY, str(record.target.kek_id)),
    ]
    missing = [f"{kind}/{name}" for kind, name in wanted if (kind, name) not in facts.bodies]
    if missing:
        return Refused(Reason.CONTROL_ROW_DAMAGED, f"control row {missing[0]} does not verify")
    return check_chain(facts)


def check_chain(facts: Facts) -> Refused | None:
    """Ask whether the chain in the store is whole: the next link is named by how many there are."""
    if damaged := facts.damaged_links:
        return Refused(Reason.CONTROL_ROW_DAMAGED, f"control row {damaged[0]} does not verify")
    return None


def check_link(facts: Facts, record: OperationRecord, link: bytes) -> Refused | None:
    """Ask whether the link that the flip adds is there, and has room; none where the root key stays."""
    if bool(link) is not record.depth.renews_key:
        return Refused(Reason.STAGED_INVALID, f"a {record.depth} {'has no' if link else 'needs a'} link")
    if link and facts.chain_length >= MAX_LINKS:
        return Refused(Reason.CHAIN_FULL, f"the chain has {facts.chain_length} links, want fewer than {MAX_LINKS}")
    return None


def check_keyrings(facts: Facts) -> Refused | None:
    """Ask whether the current keyring has every KEK of the older ones, which are about to be deleted."""
    older = {
        name for number in facts.older_keyrings if number in facts.keyrings for name in facts.keyrings[number].keks
    }
    missing = sorted(map(int, older - facts.keyring.keks.keys()))
    if missing:
        text = f"keyring/{facts.generation} lacks KEKs {missing}, which an older keyring has"
        return Refused(Reason.CONTROL_ROW_DAMAGED, text)
    return None
