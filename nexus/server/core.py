"""The core of a nexus: what stands between its wire and its store, audit and keepers."""

from collections.abc import Callable
from dataclasses import dataclass

from common.clock import Clock
from common.keys.protected import ProtectedMemory
from nexus.access.audit.exporter import Exporter
from nexus.access.audit.journal import Journal
from nexus.access.audit.log import AuditLog
from nexus.access.gate import Gate
from nexus.admin.initialise import Initialisation
from nexus.admin.policies import Policies
from nexus.admin.seal import Seal
from nexus.admin.statement_signer import StatementSigner
from nexus.admin.status import Status
from nexus.admin.unseal import Unseal
from nexus.keepers.pool import KeeperPool
from nexus.keys.genesis_pin import GenesisPin
from nexus.lifecycle.lifecycle import Lifecycle
from nexus.lifecycle.states import State
from nexus.lifecycle.warden import Warden
from nexus.policy.rules import Policy
from nexus.store.protocol import Store
from nexus.vault.secrets import Vault

_ANY = GenesisPin()


@dataclass(frozen=True, slots=True)
class Core:
    """What the handlers call, and what a process starts and ends."""

    lifecycle: Lifecycle
    warden: Warden
    gate: Gate
    vault: Vault
    policies: Policies
    initialisation: Initialisation
    unseal: Unseal
    seal: Seal
    status: Status


def build_core(
    store: Store,
    audit: AuditLog,
    exporter: Exporter,
    journal: Journal,
    pool: KeeperPool,
    *,
    state: State,
    memory: ProtectedMemory,
    signer: StatementSigner,
    first_policy: Policy,
    clock: Clock,
    on_state: Callable[[State], None],
    give_up: Callable[[str], None],
    pin: GenesisPin = _ANY,
) -> Core:
    """Build every part on *store*, *audit* and *pool*, whose owner closes them.

    The lifecycle begins in *state*; *on_state* hears of each change after the audit follows it. *give_up* ends the
    process. *pin* names the one cluster that may be served.
    """

    def follow(now: State) -> None:
        journal.follow(now, lifecycle)
        on_state(now)

    lifecycle = Lifecycle(state, on_change=follow, on_failure=give_up)
    warden = Warden(store=store, lifecycle=lifecycle, pool=pool, memory=memory, clock=clock, pin=pin)
    gate = Gate(lifecycle, audit, exporter, clock)
    initialisation = Initialisation(
        store=store,
        gate=gate,
        lifecycle=lifecycle,
        warden=warden,
        pool=pool,
        memory=memory,
        first_policy=first_policy,
        pin=pin,
    )
    unseal = Unseal(store=store, gate=gate, warden=warden, memory=memory, clock=clock, signer=signer, pin=pin)
    status = Status(
        store=store,
        gate=gate,
        lifecycle=lifecycle,
        pool=pool,
        initialisation=initialisation,
        warden=warden,
        unseal=unseal,
        memory_protection=memory.level,
    )
    return Core(
        lifecycle,
        warden,
        gate,
        Vault(store, gate, clock),
        Policies(store, gate),
        initialisation,
        unseal,
        Seal(gate, warden),
        status,
    )
