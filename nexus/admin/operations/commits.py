"""What the driver commits: each transition in a change of its own, with an entry of the nexus itself.

A commit is made under the warden's lock, and is refused if another transition came first. It is decided by the rows
that the change finds (`nexus.keys.operation.transitions`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.clock import Clock, to_micros
from common.errors import WrongStateError
from common.failpoint import around
from common.forms.audit.entry import Entry
from common.forms.chain import extend_chain
from nexus.keys.backup_key import carry_backup_key
from nexus.keys.opened import OtherSets, Serving
from nexus.keys.operation import transitions
from nexus.keys.operation.change import Change
from nexus.keys.operation.dead_sets import forget_sets
from nexus.keys.operation.evidence import Holding, Proof
from nexus.keys.operation.facts import Facts
from nexus.keys.operation.record import Depth, Driver, OperationRecord
from nexus.keys.operation.refusal import Refused
from nexus.keys.outbox import append_entry
from nexus.keys.root_key import RootKey
from nexus.keys.ruled_change import Rule, commit_rule
from nexus.keys.succession import sign_link
from nexus.lifecycle.warden import Warden
from nexus.store.protocol import Store, Writer

Holders = Mapping[str, Holding]  # by name of the keeper


@dataclass(frozen=True, slots=True)
class Commits:
    """Every method raises what `commit_rule` raises, and what `Warden.change` raises without a ready nexus."""

    _store: Store
    _warden: Warden
    _clock: Clock
    _driver: Driver
    _follow_key: Callable[[], None]  # lets the audit be signed with the root key that is current now

    def take_over(self, record: OperationRecord) -> None:
        """Carry on what another process began."""
        with around("takeover.commit"):
            self._step_on(record, "root.takeover", transitions.take_over)

    def distribute(self, record: OperationRecord, proof: Proof | None, holders: Holders) -> None:
        """Record that keepers hold the new set."""
        with around("distribute.commit"):
            self._step_on(record, "root.distribute", transitions.distribute, proof=proof, holders=holders)

    def settle(self, record: OperationRecord, proof: Proof | None) -> None:
        """End what is flipped."""
        with around("settle.commit"):
            self._step_on(record, "root.settle", transitions.settle, proof=proof)

    def abort(self, record: OperationRecord, why: str) -> None:
        """Take back what is not flipped."""
        with around("abort.commit"):
            self._change(
                lambda facts, _: transitions.abort(facts, record.ticket, detail=why, at=self._now), "root.abort", why
            )

    def heal(self, facts: Facts) -> None:
        """End what cannot be carried on."""
        rows = ", ".join(facts.needed_damaged)
        with around("heal.commit"):
            self._change(lambda facts, _: transitions.heal(facts), "root.heal", f"do not verify: {rows}")

    def forget_sets(self, gone: Mapping[int, frozenset[str]]) -> None:
        """Delete the rows of dead sets that nobody holds any more."""
        with around("forget.commit"):
            self._change(lambda facts, _: forget_sets(facts, gone), "root.forget-sets")

    def flip(
        self, record: OperationRecord, serving: Serving, proof: Proof | None, find_holders: Callable[[Facts], Holders]
    ) -> None:
        """Make what is new current, and serve with it. What it replaces is wiped once nobody uses it any more."""
        pending, replaced, chain = serving.others.pending, serving.shard_set.record.set_id, serving.chain
        if pending is None or (pending.key is not None) is not record.depth.renews_key:
            raise WrongStateError("the new set or key was withdrawn meanwhile")

        def rule(facts: Facts, revision: int) -> Change | Refused:
            nonlocal chain
            link = sign_flip(record, serving, facts, revision)
            chain = extend_chain(serving.chain, [link] if link else [])
            flipped = transitions.flip(
                facts,
                record.ticket,
                driver=self._driver,
                proof=proof,
                holders=find_holders(facts),
                link=link,
                revision=revision,
                at=self._now,
            )
            if isinstance(flipped, Refused) or pending.key is None:
                return flipped
            is_compromised = record.depth is Depth.EMERGENCY
            old, new = serving.keyring, pending.key.keyring
            return carry_backup_key(flipped, facts, old, new, is_compromised=is_compromised)

        def succeed() -> None:
            serving.succeed(pending, chain, OtherSets(kept=frozenset({replaced})))

        with around("flip.commit"):
            self._change(rule, "root.flip", _describe(record), heir=pending.root_key, on_commit=succeed)
        if record.depth.renews_key:
            with around("flip.signer"):
                self._follow_key()
        with around("flip.mark-after"):
            self._warden.keep_again()

    def _step_on(
        self, record: OperationRecord, action: str, transition: Callable[..., Change | Refused], **evidence: object
    ) -> None:
        def rule(facts: Facts, _: int) -> Change | Refused:
            return transition(facts, record.ticket, driver=self._driver, at=self._now, **evidence)

        self._change(rule, action, _describe(record))

    def _change(
        self,
        rule: Rule,
        action: str,
        detail: str = "",
        *,
        heir: RootKey | None = None,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        def write_entry(writer: Writer, key: RootKey) -> None:
            entry = Entry(at=self._now, actor="", action=action, detail=detail)
            append_entry(writer, key, self._driver.nexus, entry.encode())

        self._warden.change(
            lambda serving: commit_rule(self._store, serving, rule, write_entry, heir=heir, on_commit=on_commit)
        )

    @property
    def _now(self) -> int:
        return to_micros(self._clock.now())


def sign_flip(record: OperationRecord, serving: Serving, facts: Facts, revision: int) -> bytes:
    """Return the link that the flip adds, signed for a change on top of *facts*; empty: the root key stays."""
    return sign_link(record.link, serving, facts.meta, revision=revision) if record.link else b""


def _describe(record: OperationRecord) -> str:
    if record.depth.renews_key:
        keys = f"generation {record.source.generation} → {record.target.generation}"
        return f"{record.depth} {record.id.hex()[:8]}, {keys}"
    sets = f"set {record.source.set_number} → {record.target.set_number}"
    return f"{record.depth} {record.id.hex()[:8]}, {sets}"
