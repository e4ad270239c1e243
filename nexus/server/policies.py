"""PolicyService: message → policies → message."""

from common.errors import InvalidArgumentError
from common.server.edge import Call
from nexus.admin.policies import MAX_EXPLAINED, Policies
from nexus.policy.rules import Permission, Policy
from nexus.server.auth import Authenticator
from shardhold.v1 import policies_pb2 as pb

_PERMISSIONS = {
    pb.PERMISSION_READ: Permission.READ,
    pb.PERMISSION_WRITE: Permission.WRITE,
    pb.PERMISSION_DELETE: Permission.DELETE,
    pb.PERMISSION_LIST: Permission.LIST,
}
_NUMBERS = {permission: number for number, permission in _PERMISSIONS.items()}


class PolicyHandlers:
    def __init__(self, policies: Policies, authenticator: Authenticator) -> None:
        self._policies = policies
        self._identify = authenticator.identify

    def apply_policies(self, call: Call, request: pb.ApplyPoliciesRequest) -> pb.ApplyPoliciesResponse:
        policies = [_from_message(message) for message in request.policies]
        applied = self._policies.apply(self._identify(call), policies)
        return pb.ApplyPoliciesResponse(
            revision=applied.revision, unchanged=applied.unchanged, warnings=applied.warnings
        )

    def get_policy(self, call: Call, request: pb.GetPolicyRequest) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(policy=_to_message(self._policies.get(self._identify(call), request.name)))

    def list_policies(self, call: Call, request: pb.ListPoliciesRequest) -> pb.ListPoliciesResponse:
        page = self._policies.list(self._identify(call), after=request.page_token, limit=request.page_size)
        return pb.ListPoliciesResponse(
            policies=[_to_message(policy) for policy in page.policies],
            damaged=page.damaged,
            next_page_token=page.following,
        )

    def delete_policy(self, call: Call, request: pb.DeletePolicyRequest) -> pb.DeletePolicyResponse:
        return pb.DeletePolicyResponse(revision=self._policies.delete(self._identify(call), request.name))

    def explain_access(self, call: Call, request: pb.ExplainAccessRequest) -> pb.ExplainAccessResponse:
        if request.permission not in _PERMISSIONS:
            raise InvalidArgumentError(f"permission: got {request.permission}, want one of {', '.join(Permission)}")
        permission = _PERMISSIONS[request.permission]
        explained = self._policies.explain(self._identify(call), request.spiffe_id, permission, request.path)
        return pb.ExplainAccessResponse(
            is_allowed=bool(explained.policies),
            policies=explained.policies[:MAX_EXPLAINED],
            explanation=explained.sentence,
        )


def _from_message(message: pb.Policy) -> Policy:
    unknown = [number for number in message.permissions if number not in _PERMISSIONS]
    if unknown:
        raise InvalidArgumentError(
            f"policy {message.name[:64]}: permissions: got {unknown[0]}, want one of {', '.join(Permission)}"
        )
    return Policy(
        name=message.name,
        spiffe_ids=tuple(message.spiffe_ids),
        paths=tuple(message.paths),
        permissions=tuple(_PERMISSIONS[number] for number in message.permissions),
    )


def _to_message(policy: Policy) -> pb.Policy:
    return pb.Policy(
        name=policy.name,
        spiffe_ids=policy.spiffe_ids,
        paths=policy.paths,
        permissions=[_NUMBERS[permission] for permission in policy.permissions],
    )
