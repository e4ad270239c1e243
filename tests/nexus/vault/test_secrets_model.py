"""The vault against a model of a few lines, with restarts in between."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from common.errors import ConflictError, InvalidArgumentError, NotFoundError
from common.keys.protected import ProtectedMemory
from nexus.policy.keeping import DEFAULT_MAX_VERSIONS
from nexus.policy.rules import Permission, Policy
from nexus.store.protocol import MadeByRequest
from nexus.vault.expected import Expected
from tests.nexus.cluster import found, open_store
from tests.nexus.core import APP, NexusCore, make_ready

EVERYTHING = Policy(
    name="all", spiffe_ids=("spiffe://example.org/team/*",), paths=("**",), permissions=tuple(Permission)
)
NAMES = ("a", "a/b", "ab", "b")


@dataclass
class ModelSecret:
    """What the newest incarnation of one secret has to be."""

    incarnation: bytes = b""
    versions: dict[int, dict[str, bytes]] = field(default_factory=dict)  # that were ever written
    deleted: set[int] = field(default_factory=set)
    destroyed: set[int] = field(default_factory=set)
    first: int = 1  # older ones are pruned
    max_versions: int = 0  # 0: more than are ever written here

    @property
    def newest(self) -> int:
        return len(self.versions)

    @property
    def kept(self) -> list[int]:
        return [version for version in self.versions if version >= self.first and version not in self.destroyed]

    @property
    def live(self) -> list[int]:
        return [version for version in self.kept if version not in self.deleted]

    @property
    def current(self) -> int:
        return self.newest if self.live else 0

    @property
    def history(self) -> list[tuple[int, str]]:
        return [(version, self._state(version)) for version in range(self.newest, self.first - 1, -1)]

    def write(self, version: int, fields: dict[str, bytes]) -> None:
        self.versions[version] = fields
        self.prune()

    def prune(self) -> None:
        if self.max_versions:
            self.first = max(self.first, self.newest - self.max_versions + 1)

    def _state(self, version: int) -> str:
        return "destroyed" if version in self.destroyed else "deleted" if version in self.deleted else "live"


@dataclass(frozen=True)
class Request:
    """One that made something."""

    send: Callable[[], MadeByRequest]
    made: MadeByRequest


Made = Request | MultipleResults[Request]


class VaultMachine(RuleBasedStateMachine):
    """Each run has a prefix of its own in one store."""

    find_nexus: Callable[[], NexusCore]
    restart_nexus: Callable[[], NexusCore]
    requests: Bundle[Request] = Bundle("requests")

    def __init__(self) -> None:
        super().__init__()
        self.nexus = type(self).find_nexus()
        self.prefix = f"run/{os.urandom(8).hex()}"
        self.model = {name: ModelSecret() for name in NAMES}

    @rule(target=requests, name=st.sampled_from(NAMES), value=st.binary(max_size=8), expected=st.integers(-1, 3))
    def put(self, name: str, value: bytes, expected: int) -> Made:
        secret, request_id = self.model[name], os.urandom(16)
        check = Expected(None if expected < 0 else expected)

        def send() -> MadeByRequest:
            return self.nexus.vault.put(APP, self.path(name), {"value": value}, check, request_id)

        if expected >= 0 and expected != secret.current:
            self.refused(ConflictError, send)
            return multiple()
        made = send()
        if not secret.live:
            assert made.incarnation != secret.incarnation
            self.model[name] = secret = ModelSecret(made.incarnation, max_versions=secret.max_versions)
        assert made.incarnation == secret.incarnation
        assert made.versions == (secret.newest + 1,)
        secret.write(made.versions[0], {"value": value})
        return Request(send, made)

    @rule(target=requests, name=st.sampled_from(NAMES), field=st.sampled_from(["value", "b"]), is_removed=st.booleans())
    def patch(self, name: str, field: str, is_removed: bool) -> Made:
        secret, request_id, value = self.model[name], os.urandom(16), os.urandom(4)
        fields, removed = ({}, [field]) if is_removed else ({field: value}, list[str]())

        def send() -> MadeByRequest:
            return self.nexus.vault.patch(APP, self.path(name), fields, removed, Expected(), request_id)

        if not secret.newest or secret.newest not in secret.live:
            self.refused(NotFoundError, send)
            return multiple()
        patched = {key: old for key, old in (secret.versions[secret.newest] | fields).items() if key not in removed}
        if not patched:
            self.refused(InvalidArgumentError, send)
            return multiple()
        made = send()
        assert (made.versions, made.incarnation) == ((secret.newest + 1,), secret.incarnation)
        secret.write(made.versions[0], patched)
        return Request(send, made)

    @rule(target=requests, name=st.sampled_from(NAMES), versions=st.sets(st.integers(1, 4), max_size=2))
    def delete(self, name: str, versions: set[int]) -> Made:
        secret, request_id = self.model[name], os.urandom(16)

        def send() -> MadeByRequest:
            return self.nexus.vault.delete(APP, self.path(name), sorted(versions), Expected(), request_id)

        if not secret.live or not versions <= set(secret.live):
            self.refused(NotFoundError, send)
            return multiple()
        made = send()
        assert made.versions == tuple(sorted(versions or secret.live))
        secret.deleted.update(made.versions)
        return Request(send, made)

    @rule(target=requests, name=st.sampled_from(NAMES), versions=st.sets(st.integers(1, 4), min_size=1, max_size=2))
    def undelete(self, name: str, versions: set[int]) -> Made:
        secret, request_id = self.model[name], os.urandom(16)

        def send() -> MadeByRequest:
            return self.nexus.vault.undelete(APP, self.path(name), sorted(versions), request_id)

        if not versions <= set(secret.kept) & secret.deleted:
            self.refused(NotFoundError, send)
            return multiple()
        made = send()
        assert made.versions == tuple(sorted(versions))
        secret.deleted -= versions
        return Request(send, made)

    @rule(target=requests, name=st.sampled_from(NAMES), versions=st.sets(st.integers(1, 4), max_size=2))
    def destroy(self, name: str, versions: set[int]) -> Made:
        secret, request_id = self.model[name], os.urandom(16)

        def send() -> MadeByRequest:
            return self.nexus.vault.destroy(APP, self.path(name), sorted(versions), Expected(), request_id)

        if not secret.kept or not versions <= set(secret.kept):
            self.refused(NotFoundError, send)
            return multiple()
        made = send()
        assert made.versions == tuple(sorted(versions or secret.kept))
        secret.destroyed.update(made.versions)
        return Request(send, made)

    @rule(target=requests, name=st.sampled_from(NAMES), max_versions=st.integers(0, 3))
    def keep(self, name: str, max_versions: int) -> Made:
        secret, request_id = self.model[name], os.urandom(16)

        def send() -> MadeByRequest:
            return self.nexus.vault.update_metadata(APP, self.path(name), max_versions, request_id)

        if not secret.versions:
            self.refused(NotFoundError, send)
            return multiple()
        made = send()
        secret.max_versions = max_versions
        secret.prune()
        return Request(send, made)

    @rule(request=requests)
    def send_again(self, request: Request) -> None:
        assert request.send() == request.made  # whatever became of the secret

    @rule()
    def restart(self) -> None:
        self.nexus = type(self).restart_nexus()

    @invariant()
    def every_version_reads_as_in_the_model(self) -> None:
        for name, secret in self.model.items():
            for version in range(1, len(secret.versions) + 2):
                if version in secret.live:
                    found_secret = self.nexus.vault.get(APP, self.path(name), version)
                    assert found_secret.fields == secret.versions[version]
                    assert found_secret.incarnation == secret.incarnation
                else:
                    self.refused(NotFoundError, partial(self.nexus.vault.get, APP, self.path(name), version))

    @invariant()
    def the_versions_are_listed_as_in_the_model(self) -> None:
        for name, secret in self.model.items():
            if not secret.versions:
                self.refused(NotFoundError, partial(self.nexus.vault.list_versions, APP, self.path(name)))
                continue
            page = self.nexus.vault.list_versions(APP, self.path(name))
            assert (page.incarnation, page.current_version) == (secret.incarnation, secret.newest)
            assert page.max_versions == (secret.max_versions or DEFAULT_MAX_VERSIONS)
            assert page.max_versions_is_own is (secret.max_versions > 0)
            assert [(row.version, row.state.value) for row in page.versions] == secret.history

    @invariant()
    def the_listing_shows_what_is_left(self) -> None:
        for include_deleted in (False, True):
            rows, token = self.nexus.vault.list(APP, self.prefix, after="", limit=0, include_deleted=include_deleted)
            shown = {row.path: (row.current_version, row.incarnation, row.newest_live_version) for row in rows}
            assert token == ""
            assert shown == {
                self.path(name): (secret.newest, secret.incarnation, max(secret.live, default=0))
                for name, secret in self.model.items()
                if (secret.kept if include_deleted else secret.live)
            }
            assert [row.path for row in rows] == sorted(shown)

    def path(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    def refused(self, error: type[Exception], call: Callable[[], object]) -> None:
        try:
            call()
        except error:
            return
        raise AssertionError(f"not refused with {error.__name__}")


def test_any_sequence_of_calls_leaves_what_the_model_says(tmp_path: Path, memory: ProtectedMemory) -> None:
    """Puts, patches, check-and-sets, deletes, undeletes, destroys, limits, repeated requests and restarts."""
    cluster = found(open_store(tmp_path), memory, keepers=3, threshold=2, policies=[EVERYTHING])
    made: list[NexusCore] = []

    def start() -> NexusCore:
        nexus = NexusCore(tmp_path, cluster.store, memory, cluster.keepers())
        make_ready(nexus, cluster)
        made.append(nexus)
        return nexus

    def restart() -> NexusCore:
        made.pop().close()
        cluster.store.close()
        cluster.store = open_store(tmp_path)
        return start()

    class Machine(VaultMachine):
        find_nexus = staticmethod(lambda: made[-1])
        restart_nexus = staticmethod(restart)

    start()
    run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=25, stateful_step_count=20),
    )
    made.pop().close()
    cluster.store.close()
