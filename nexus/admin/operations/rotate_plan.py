"""What a rotation is asked to do, checked."""

from dataclasses import dataclass

from common.errors import InvalidArgumentError
from nexus.admin.seal import check_reason


@dataclass(frozen=True, slots=True)
class RotatePlan:
    """A new root key; in an emergency every value gets a new DEK as well."""

    is_emergency: bool = False
    suspected_at: int = 0  # emergency: since when somebody else may have had the root key; microseconds since 1970
    is_forced: bool = False  # inside the minimum age
    without_backup: str = ""  # why no backup is waited for; empty: one is

    @property
    def needs_superuser(self) -> bool:
        """Whether it does without something that protects against a mistake."""
        return self.is_forced or bool(self.without_backup)


def check_rotate_plan(plan: RotatePlan, *, now: int) -> None:
    """Check what can be checked without the store. *now*: microseconds since 1970.

    Raises:
        InvalidArgumentError: The field is named, with what is wanted.
    """
    check_reason(plan.without_backup)
    if plan.suspected_at and not plan.is_emergency:
        raise InvalidArgumentError("suspected_since: given without an emergency")
    if not 0 <= plan.suspected_at <= now:
        raise InvalidArgumentError("suspected_since: want a time since 1970 that is not ahead")
