"""Turn the peer of a call into a caller with a role."""

from functools import lru_cache

from common.errors import DeniedError
from common.server.edge import Call
from nexus.access.gate import Caller
from nexus.access.roles import PEOPLE, Role, Roles

_REMEMBERED_CALLERS = 4096
_AT_ADMIN_PORT = PEOPLE | {Role.NEXUS}  # `nexus health` asks there with the nexus's own identity


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

    def admit_person(self, spiffe_id: str) -> None:
        """Refuse whoever has no business at the port for people.

        Raises:
            DeniedError: It is a workload or a keeper.
            UnauthenticatedError: The SPIFFE ID is of another trust domain.
        """
        if self._find_role(spiffe_id) not in _AT_ADMIN_PORT:
            raise DeniedError(f"{spiffe_id} is not allowed: this port is for people, want the port for workloads")
