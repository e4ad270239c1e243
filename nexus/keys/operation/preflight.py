"""What has to be true before an operation begins: one check for each line of a dry run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.forms.chain import MAX_LINKS
from nexus.keys import records
from nexus.keys.operation.evidence import Order, Preflight
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth
from nexus.keys.operation.refusal import Reason, Refused

SPARE_LINKS = 16  # that only an emergency and the acceptance of an older store may use
_DAY = 86_400_000_000  # microseconds
_MAX_MEMBERS = 255


@dataclass(frozen=True, slots=True)
class Check:
    """What was found; *reason* says that it stands in the way."""

    name: str
    found: str
    reason: Reason | None = None


def check_all(facts: Facts, order: Order, preflight: Preflight) -> tuple[Check, ...]:
    """Make every check that an operation of this depth has, the ones that fail included."""
    checks = [
        _check_rows(facts),
        _check_operation(facts),
        _check_members(order),
        _check_keepers(order, preflight),
        _check_versions(order, preflight),
        _check_disk(preflight),
        _check_memory(preflight),
        _check_reason(order),
    ]
    if order.is_scheduled:
        checks.append(_check_window(preflight))
    if order.depth.renews_key:
        checks += [_check_escrow(preflight), _check_chain(facts, order)]
    if order.depth is Depth.ROTATE:
        checks += [_check_age(facts, order, preflight), _check_backup(facts, order, preflight)]
    return tuple(checks)


def find_refusals(checks: Sequence[Check]) -> Iterator[Refused]:
    """Yield why the operation does not begin, the most basic cause first."""
    return (Refused(check.reason, f"{check.name}: {check.found}") for check in checks if check.reason is not None)


def _check_rows(facts: Facts) -> Check:
    if facts.needed_damaged:
        return Check("control rows", f"do not verify: {', '.join(facts.needed_damaged)}", Reason.CONTROL_ROW_DAMAGED)
    return Check("control rows", "verify")


def _check_operation(facts: Facts) -> Check:
    if facts.meta.sealed:
        return Check("operation", "the cluster is sealed", Reason.SEALED)
    if facts.operation is not None:
        found = f"a {facts.operation.depth} is {facts.operation.step}"
        return Check("operation", found, Reason.OPERATION_RUNNING)
    if facts.pending_sets or facts.older_keyrings:
        return Check("operation", "rows of an earlier one are left", Reason.OPERATION_RUNNING)
    return Check("operation", "none in progress")


def _check_members(order: Order) -> Check:
    count, threshold = len(order.keepers), order.threshold
    if len(set(order.keepers)) < count:
        return Check("members", "a keeper is named twice", Reason.MEMBERS_INVALID)
    if not 2 <= threshold <= count <= _MAX_MEMBERS:
        found = f"threshold is {threshold} of {count}, want 2 to {count} of at most {_MAX_MEMBERS}"
        return Check("members", found, Reason.MEMBERS_INVALID)
    return Check("members", f"threshold {threshold} of {count}")


def _check_keepers(order: Order, preflight: Preflight) -> Check:
    reachable = len(preflight.reachable.intersection(order.keepers))
    wanted = records.find_quorum(order.threshold, len(order.keepers))
    found = f"{reachable} of {len(order.keepers)} reachable, want {wanted}"
    return Check("keepers", found, Reason.KEEPERS_SHORT if reachable < wanted else None)


def _check_versions(order: Order, preflight: Preflight) -> Check:
    too_old = sorted(preflight.too_old.intersection(order.keepers))
    if too_old:
        return Check("keeper versions", f"too old, upgrade first: {', '.join(too_old)}", Reason.KEEPER_TOO_OLD)
    return Check("keeper versions", "new enough")


def _check_disk(preflight: Preflight) -> Check:
    found = f"{preflight.disk_free} bytes free, want {preflight.disk_wanted}"
    return Check("disk", found, Reason.DISK_SHORT if preflight.disk_free < preflight.disk_wanted else None)


def _check_memory(preflight: Preflight) -> Check:
    found = f"{preflight.memory_free} protected bytes free, want {preflight.memory_wanted}"
    return Check("memory", found, Reason.MEMORY_SHORT if preflight.memory_free < preflight.memory_wanted else None)


def _check_reason(order: Order) -> Check:
    needs_one = order.is_forced or order.depth is Depth.EMERGENCY
    if (needs_one and not order.reason) or any(not waiver.reason for waiver in order.waivers):
        return Check("reason", "none is given", Reason.REASON_MISSING)
    return Check("reason", order.reason or "none is needed")


def _check_window(preflight: Preflight) -> Check:
    if not preflight.is_in_window:
        return Check("window", "no window of the schedule is open", Reason.OUTSIDE_WINDOW)
    return Check("window", "open")


def _check_escrow(preflight: Preflight) -> Check:
    if not preflight.is_escrow_proved:
        return Check("escrow", "the shares of the chain's recovery key are not proved", Reason.ESCROW_UNPROVED)
    return Check("escrow", "recovery key is the chain's; its shares are proved")


def _check_chain(facts: Facts, order: Order) -> Check:
    limit = MAX_LINKS if order.depth is Depth.EMERGENCY else MAX_LINKS - SPARE_LINKS
    found = f"{facts.chain_length} links, want fewer than {limit}"
    return Check("chain", found, Reason.CHAIN_FULL if facts.chain_length >= limit else None)


def _check_age(facts: Facts, order: Order, preflight: Preflight) -> Check:
    record = facts.generations.get(facts.generation)
    activated_at = 0 if record is None else record.activated_at or record.created_at
    age = preflight.now - activated_at
    found = f"generation {facts.generation} is {age // _DAY} days old, want {preflight.minimum_age // _DAY}"
    is_young = age < preflight.minimum_age and not order.is_forced
    return Check("age", found, Reason.MINIMUM_AGE if is_young else None)


def _check_backup(facts: Facts, order: Order, preflight: Preflight) -> Check:
    if order.without_backup:
        return Check("backup", f"waived: {order.without_backup}")
    newest, days = preflight.backup, preflight.backup_max_age // _DAY
    if newest is None or newest.generation != facts.generation:
        return Check("backup", f"none of generation {facts.generation} is verified: make one", Reason.BACKUP_OLD)
    age = preflight.now - newest.verified_at
    found = f"newest verified one is {age // _DAY} days old, want at most {days}"
    return Check("backup", found, Reason.BACKUP_OLD if age > preflight.backup_max_age else None)
