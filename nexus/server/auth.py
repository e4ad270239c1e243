"""Turn the peer of a call into a caller with a role."""

from functools import lru_cache

from common.server.edge import Call
from nexus.access.gate import Caller
from nexus.access.roles import Role, Roles

_REMEMBERED_CALLERS = 4096


class Authenticator:
    """Thread-safe."""

    def __init__(self, roles: Roles) -> None:
        self._find_role = lru_cache(_REMEMBERED_CALLERS)(roles.role_of)

    def identify(self, call: Call) -> Caller:
        """Return who calls.

        Raises:
            UnauthenticatedError: The SPIFFE ID is of another trust domain.
        """
        role: Role = self._find_role(call.caller)
        return Caller(call.caller, role, call.address)
