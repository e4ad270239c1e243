"""What a reshare is asked to change, checked and turned into the members of the new set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from common.config.config import check_address, check_label
from common.errors import ConfigError, InvalidArgumentError
from nexus.keys.records import ShardSetRecord
from nexus.keys.shard_set import Member

MAX_KEEPERS = 255
MIN_THRESHOLD = 2


@dataclass(frozen=True, slots=True)
class ResharePlan:
    """Changes of threshold and keepers; an empty one only draws new shards."""

    threshold: int = 0  # 0: as it is
    add: tuple[Member, ...] = ()
    remove: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()  # of *remove*, those that nobody waits for


def check_plan(plan: ResharePlan, is_keeper_id: Callable[[str], bool]) -> None:
    """Check what can be checked without the current set. *is_keeper_id* says whether a SPIFFE ID may be a keeper's.

    Raises:
        InvalidArgumentError: The field is named, with what it was and what is wanted.
    """
    _check_count("add", plan.add)
    for index, member in enumerate(plan.add):
        _check_text(check_label, f"add[{index}].name", member.name)
        _check_text(check_address, f"add[{index}].address", member.address)
        if not is_keeper_id(member.spiffe_id):
            raise InvalidArgumentError(
                f"add[{index}].spiffe_id: got {member.spiffe_id[:100]!r}, "
                "want one of the trust domain that is no person's and no nexus's"
            )
    check_names("remove", plan.remove)
    check_names("lost", plan.lost)
    if strange := [name for name in plan.lost if name not in plan.remove]:
        raise InvalidArgumentError(f"lost: got {strange[0][:64]!r}, want names that are removed")


def check_names(field: str, names: Sequence[str]) -> None:
    """Check names of keepers by their form.

    Raises:
        InvalidArgumentError: They are too many, one is no name, or it stands twice.
    """
    _check_count(field, names)
    for index, name in enumerate(names):
        _check_text(check_label, f"{field}[{index}]", name)
    _check_distinct(field, names)


def choose_members(current: ShardSetRecord, plan: ResharePlan) -> tuple[list[Member], int]:
    """Return the keepers of the new set, and its threshold.

    Raises:
        InvalidArgumentError: A name is not a keeper's, keepers share something, or threshold and number do not fit.
    """
    names = {member.name for member in current.members}
    if strange := [name for name in plan.remove if name not in names]:
        raise InvalidArgumentError(f"remove: got {strange[0][:64]!r}, want one of {', '.join(sorted(names))}")
    stay = [one for one in current.members if one.name not in plan.remove]
    members = [Member(one.name, one.spiffe_id, one.address) for one in stay] + list(plan.add)
    for field in ("name", "address", "spiffe_id"):
        _check_distinct(f"keepers' {field}", [getattr(member, field) for member in members])
    threshold = plan.threshold or current.threshold
    if len(members) > MAX_KEEPERS:
        raise InvalidArgumentError(f"keepers: got {len(members)}, want at most {MAX_KEEPERS}")
    if not MIN_THRESHOLD <= threshold <= len(members):
        raise InvalidArgumentError(
            f"threshold: got {threshold} of {len(members)} keepers, want {MIN_THRESHOLD} or more"
        )
    return members, threshold


def _check_text(check: Callable[[str, str], None], name: str, value: str) -> None:
    try:
        check(name, value)
    except ConfigError as exc:
        raise InvalidArgumentError(str(exc)) from exc


def _check_count(field: str, values: Sequence[object]) -> None:
    if len(values) > MAX_KEEPERS:
        raise InvalidArgumentError(f"{field}: got {len(values)} keepers, want at most {MAX_KEEPERS}")


def _check_distinct(name: str, values: Sequence[str]) -> None:
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise InvalidArgumentError(f"{name}: {twice[:100]!r} stands twice, want each once")
