"""The way into a fake nexus: whether it is sealed, and who may what: everything, but for what a test denies."""

import re
from collections.abc import Iterable

from shardhold.testing._refusals import denied, sealed

PERMISSIONS = ("read", "write", "list", "delete")

_EVERYTHING = "**"
_SEGMENT = re.compile(r"[A-Za-z0-9._*-]{1,128}")


class Gate:
    """Asked before anything is read. *caller* is the SPIFFE ID that denials name."""

    def __init__(self, caller: str) -> None:
        self.is_sealed = False
        self._caller = caller
        self._denied: list[tuple[str, re.Pattern[str], frozenset[str]]] = []

    def deny(self, glob: str, permissions: Iterable[str]) -> None:
        """Deny *permissions*, or all of them for none, on the paths that *glob* matches.

        Raises:
            ValueError: It is no glob over paths, or there is no such permission.
        """
        named = frozenset(permissions)
        if unknown := sorted(named.difference(PERMISSIONS)):
            raise ValueError(f"permission: got {unknown[0]!r}, want {', '.join(PERMISSIONS)}")
        self._denied.append((glob, _compile(glob), named or frozenset(PERMISSIONS)))

    def allow_all(self) -> None:
        """Deny nothing any more."""
        self._denied.clear()

    def admit(self, permission: str, path: str) -> None:
        """Admit a call on a secret.

        Raises:
            SealedError: The nexus is sealed.
            DeniedError: The permission is denied on the path.
        """
        self._check_open()
        if self._is_denied(permission, path):
            raise denied(self._caller, permission, path)

    def admit_list(self, prefix: str) -> None:
        """Admit a list, each of whose paths is then asked of `may_list`; raises as `admit`."""
        self._check_open()
        if any(glob == _EVERYTHING and "list" in permissions for glob, _, permissions in self._denied):
            raise denied(self._caller, "list", prefix, where="on some path")

    def may_list(self, path: str) -> bool:
        """Whether a list shows *path*."""
        return not self._is_denied("list", path)

    def _check_open(self) -> None:
        if self.is_sealed:
            raise sealed()

    def _is_denied(self, permission: str, path: str) -> bool:
        return any(
            permission in permissions and pattern.fullmatch(f"{path}/") for _, pattern, permissions in self._denied
        )


def _compile(glob: str) -> re.Pattern[str]:
    """Compile *glob* to match a path with a slash at its end."""
    pattern = ""
    for segment in glob.split("/"):
        if segment == "**":
            pattern += "(?:[^/]+/)*"
        elif "**" in segment or _SEGMENT.fullmatch(segment) is None:
            raise ValueError(f"glob: got {glob!r}, want segments of [A-Za-z0-9._-] with '*' in them, or '**'")
        else:
            pattern += "[^/]*".join(map(re.escape, segment.split("*"))) + "/"
    return re.compile(pattern)
