"""The table of RPCs, compared with the design, the contracts, their comments and the documentation."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from docs.generate import PAGE, render_page
from nexus.access.calls import ALL, BY_FULL_NAME, Rpc
from nexus.access.roles import Role
from nexus.lifecycle.states import State
from nexus.policy.rules import Permission
from shardhold.v1 import audit_pb2, backup_pb2, cluster_pb2, policies_pb2, recovery_pb2, root_pb2, secrets_pb2

PROTOS = Path(__file__).parents[3] / "proto" / "shardhold" / "v1"
CONTRACTS = [secrets_pb2, policies_pb2, cluster_pb2, recovery_pb2, audit_pb2, root_pb2, backup_pb2]

# Design §5 and its roles, by hand: the one other place that knows them, so that a wrong row is found.
DESIGN = {
    "PutSecret": ("secret.write", "workload superuser", "write", "ready"),
    "PatchSecret": ("secret.patch", "workload superuser", "write", "ready"),
    "GetSecret": ("secret.read", "workload superuser", "read", "ready"),
    "ListSecrets": ("secret.list", "workload superuser", "list", "ready"),
    "ListVersions": ("secret.versions", "workload superuser", "read", "ready"),
    "DeleteSecret": ("secret.delete", "workload superuser", "delete", "ready"),
    "UndeleteSecret": ("secret.undelete", "workload superuser", "write", "ready"),
    "DestroySecret": ("secret.destroy", "workload superuser", "delete", "ready"),
    "UpdateSecretMetadata": ("secret.metadata", "workload superuser", "write", "ready"),
    "ApplyPolicies": ("policy.apply", "superuser", "", "ready"),
    "ListPolicies": ("policy.list", "superuser auditor", "", "ready"),
    "DeletePolicy": ("policy.delete", "superuser", "", "ready"),
    "GetStatus": ("status.get", "all", "", "uninitialised initialising recovering sealed ready"),
    "BeginInit": ("init.begin", "superuser", "", "uninitialised initialising"),
    "ConfirmInit": ("init.confirm", "superuser", "", "initialising ready"),  # ready: the same answer again
    "AbortInit": ("init.abort", "superuser", "", "initialising"),
    "Seal": ("seal", "superuser operator", "", "recovering sealed ready"),
    "AcceptOlderStore": ("store.accept-older", "superuser", "", "recovering"),
    "ListKeepers": ("keeper.list", "superuser operator auditor", "", "ready"),
    "StartUnseal": ("unseal.start", "recover operator superuser", "", "recovering sealed"),
    "GetSealingKey": ("unseal.key", "recover operator superuser", "", "recovering sealed"),
    "SubmitShare": ("unseal.submit", "recover operator superuser", "", "recovering sealed"),
    "GetProgress": ("unseal.progress", "recover operator superuser auditor", "", "recovering sealed"),
    "ExcludeSubmitter": ("unseal.exclude", "operator superuser", "", "recovering sealed"),
    "ResetUnseal": ("unseal.reset", "recover operator superuser", "", "recovering sealed"),
    "TailAudit": ("audit.tail", "superuser operator auditor", "", "uninitialised initialising recovering sealed ready"),
    "AcceptNewChain": ("audit.accept-new-chain", "superuser operator", "", "recovering sealed ready"),
    "StartOperation": ("root.start", "superuser operator", "", "ready"),
    "GetOperation": ("root.status", "superuser operator auditor", "", "ready"),
    "AbortOperation": ("root.abort", "superuser operator", "", "ready"),
    "ContinueOperation": ("root.continue", "superuser operator", "", "ready"),
    "ListQuarantine": ("quarantine.list", "superuser operator auditor", "", "ready"),
    "RetryQuarantined": ("quarantine.retry", "superuser operator", "", "ready"),
    "AbandonQuarantined": ("quarantine.abandon", "superuser", "", "ready"),
    "PauseRotation": ("root.pause", "superuser operator", "", "ready"),
    "ResumeRotation": ("root.resume", "superuser operator", "", "ready"),
    "ListGenerations": ("root.history", "superuser operator auditor", "", "ready"),
    "ListImpact": ("root.impact", "superuser operator auditor", "", "ready"),
    "CreateBackup": ("backup.create", "superuser operator", "", "ready"),
    "ListBackups": ("backup.list", "superuser operator auditor", "", "ready"),
    "VerifyBackup": ("backup.verify", "superuser operator", "", "ready"),
}
# Design §8: what has to work while the audit cannot be written.
FROM_THE_RESERVE = {"GetStatus", "Seal", "AbortInit", "GetProgress", "AcceptNewChain", "AbortOperation"}


def name_rpc(rpc: Rpc[Permission | None]) -> str:
    return rpc.name


@pytest.mark.parametrize("rpc", ALL, ids=name_rpc)
def test_a_row_is_as_the_design_says(rpc: Rpc[Permission | None]) -> None:
    """Action, roles, permission and states, and who may undo what another started."""
    action, roles, permission, states = DESIGN[rpc.name]
    assert rpc.action == action
    assert rpc.roles == set(Role if roles == "all" else map(Role, roles.split()))
    assert (rpc.permission or "") == permission
    assert rpc.states == set(map(State, states.split()))
    assert rpc.roles_over_others == ({Role.OPERATOR, Role.SUPERUSER} if rpc.name == "ResetUnseal" else set())


def test_the_reserve_is_for_what_has_to_work_without_an_audit() -> None:
    """For no secret and no policy."""
    assert {rpc.name for rpc in ALL if rpc.uses_reserve} == FROM_THE_RESERVE


def test_every_rpc_of_the_contracts_has_a_row_and_every_row_an_rpc() -> None:
    """In the order of the contracts, by the name on the wire."""
    names = [
        f"/{service.full_name}/{rpc.name}"
        for contract in CONTRACTS
        for service in contract.DESCRIPTOR.services_by_name.values()
        for rpc in service.methods
    ]
    assert [rpc.full_name for rpc in ALL] == names == list(BY_FULL_NAME)
    assert [rpc.name for rpc in ALL] == list(DESIGN)


@dataclass(frozen=True)
class Comment:
    """What the comment of an RPC in the contracts says of its row."""

    roles: frozenset[str]
    permission: str
    states: frozenset[str]


def parse_comment(text: str) -> Comment:
    """Read "Roles: a, b (note), c. States: x, y (note)."; *text* is one line, without the slashes."""
    bare = re.sub(r" \([^)]*\)", "", text)
    permission = re.search(r"Needs the permission (\w+) on ", bare)
    return Comment(_list_words(bare, "Roles?"), permission[1] if permission else "", _list_words(bare, "States"))


def _list_words(text: str, heading: str) -> frozenset[str]:
    (words,) = re.findall(rf"\b{heading}: ([a-z, ]+)\.", text)
    return frozenset(words.split(", "))


def load_comments() -> dict[str, str]:
    """Return the comment of each RPC, as one line."""
    found = {}
    for proto in sorted(PROTOS.glob("*.proto")):
        for comment, name in re.findall(r"((?:^  //.*\n)+)^  rpc (\w+)\(", proto.read_text(), re.MULTILINE):
            found[name] = " ".join(line.removeprefix("  //").strip() for line in comment.splitlines())
    return found


@pytest.mark.parametrize("rpc", ALL, ids=name_rpc)
def test_a_comment_of_the_contracts_repeats_its_row(rpc: Rpc[Permission | None]) -> None:
    """Who may call, with which permission, and where it is served: what a reader of the contract is told."""
    comment = parse_comment(load_comments()[rpc.name])
    assert comment.roles == ({"all"} if rpc.roles == set(Role) else rpc.roles)
    assert comment.permission == (rpc.permission or "")
    assert comment.states == ({"all"} if rpc.states == set(State) else rpc.states)


def test_the_page_has_the_table() -> None:
    """Written by `python docs/generate.py`, and not since changed."""
    assert PAGE.read_text() == render_page()
    assert all(f"| `{rpc.name}` |" in PAGE.read_text() for rpc in ALL)
