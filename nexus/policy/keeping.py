"""How many versions of a secret are kept, as configured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from common.errors import InvalidArgumentError

DEFAULT_MAX_VERSIONS: Final = 100
HIGHEST_MAX_VERSIONS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Keeping:
    """A limit for all secrets, and others for what is below a prefix; 0: all versions are kept."""

    max_versions: int = DEFAULT_MAX_VERSIONS
    below: Mapping[str, int] = field(default_factory=dict)  # by prefix, of whole segments

    def find_limit(self, path: str) -> int:
        """Return how many versions of the secret at *path* are kept: by the longest prefix; 0: all."""
        prefix = path
        while prefix:
            if (limit := self.below.get(prefix)) is not None:
                return limit
            prefix = prefix.rpartition("/")[0]
        return self.max_versions


def check_max_versions(max_versions: int | None) -> int:
    """Check how many versions a caller wants to be kept.

    Raises:
        InvalidArgumentError: Too many, or nothing was said.
    """
    if max_versions is None:
        raise InvalidArgumentError(f"max_versions: got nothing, want 0 to {HIGHEST_MAX_VERSIONS}")
    if max_versions > HIGHEST_MAX_VERSIONS:
        raise InvalidArgumentError(f"max_versions: got {max_versions}, want at most {HIGHEST_MAX_VERSIONS}")
    return max_versions
