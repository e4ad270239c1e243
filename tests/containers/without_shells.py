"""A stack that modules share in which no container has a shell: nothing in it needs one. It has a secret."""

from tests.containers.shared import SharedStacks
from tests.containers.stack import AT_EASE, NEXUS, SERVERS, Stack

LASTING = (*SERVERS, "identity", "app")
ONE_SHOTS = ("init", "policy")
PATH = "team/app/db"
VALUE = "canary-5f1d-of-the-containers"  # searched for where others look

HIDDEN = [f"/dev/null:/usr/bin/{shell}:ro" for shell in ("dash", "bash")]
OVERRIDE = {
    "services": {
        **{name: {**AT_EASE, "volumes": HIDDEN} for name in (*LASTING, *ONE_SHOTS, "pilot")},
        "nexus": {**NEXUS, "volumes": HIDDEN},
    }
}


def take(stacks: SharedStacks) -> Stack:
    """Return the stack, whole; the first who takes it puts the secret into it."""
    stack = stacks.take("without shells", OVERRIDE)
    if stack.pilot("secret", "get", PATH, "--field", "password", check=False).stdout != VALUE:
        stack.pilot("secret", "put", PATH, "password=-", given=VALUE)
    return stack
