"""What policies allow and hardly mean: callers that cannot exist, and callers for whom no policy counts."""

from collections.abc import Iterator, Sequence

from nexus.access.calls import BY_POLICY
from nexus.access.roles import Roles
from nexus.policy.rules import Policy, split_spiffe_glob

MAX_WARNINGS = 100

_ANY = "~"  # in place of a star: no role and no configured pattern has this character


def find_warnings(policies: Sequence[Policy], roles: Roles) -> list[str]:
    """Return a sentence for each SPIFFE-ID glob of checked *policies* that allows nobody anything; the first 100."""
    warnings = [f"policy {policy.name}: {why}" for policy in policies for why in _find_idle_globs(policy, roles)]
    if len(warnings) > MAX_WARNINGS:
        shown = MAX_WARNINGS - 1
        return [*warnings[:shown], f"and {len(warnings) - shown} more warnings"]
    return warnings


def _find_idle_globs(policy: Policy, roles: Roles) -> Iterator[str]:
    for glob in policy.spiffe_ids:
        trust_domain, *segments = split_spiffe_glob(glob)
        if trust_domain != roles.trust_domain:
            yield f"{glob} is of another trust domain than {roles.trust_domain}: no caller has it"
        elif "**" not in segments and (role := roles.role_of(glob.replace("*", _ANY))) not in BY_POLICY:
            yield f"{glob} has the role {role}: no policy counts for it"
