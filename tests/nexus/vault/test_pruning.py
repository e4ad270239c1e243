"""How many versions of a secret are kept: older ones are destroyed by the next write."""

import pytest

from common.errors import (
    NotFoundError,
)
from nexus.policy.keeping import DEFAULT_MAX_VERSIONS, HIGHEST_MAX_VERSIONS, Keeping
from nexus.vault.writing import PRUNED_AT_ONCE
from tests.nexus.conftest import MakeNexus
from tests.nexus.core import APP, NexusCore
from tests.nexus.vault.asking import PATH, TEAM, delete, destroy, get, keep, list_states, patch, put


@pytest.fixture
def nexus(make_nexus: MakeNexus) -> NexusCore:
    """A ready one; APP may do everything below team/."""
    return make_nexus(TEAM)


def test_old_versions_are_destroyed_by_the_next_write(nexus: NexusCore) -> None:
    """By a put, a patch and a new limit; deleted and destroyed ones count, and the entry says which went."""
    put(nexus, 3)
    keep(nexus, 3)
    assert list_states(nexus) == "lll"
    delete(nexus, 3)
    destroy(nexus, 2)
    put(nexus)
    assert list_states(nexus) == "xdl"  # 2, 3 and 4
    patch(nexus, {"a": b"b"})
    assert list_states(nexus) == "dll"
    keep(nexus, 1)
    assert list_states(nexus) == "l"
    for version in range(1, 5):
        with pytest.raises(NotFoundError, match=f"^{PATH}: version {version} was destroyed; version left: 5$"):
            get(nexus, version)
    details = [entry.detail for _, entry in nexus.list_change_entries()]
    assert [detail for detail in details if "destroyed" in detail] == [
        "destroyed versions 1",
        "destroyed versions 2",
        "max_versions 1; destroyed versions 3 to 4",
    ]


def test_pruning_takes_some_versions_at_once_and_the_next_write_goes_on(nexus: NexusCore) -> None:
    """A limit that is lowered by much holds up nobody."""
    keep_all = PRUNED_AT_ONCE + 20
    put(nexus)
    keep(nexus, HIGHEST_MAX_VERSIONS)
    put(nexus, keep_all - 1)
    keep(nexus, 5)
    assert [row.version for row in nexus.vault.list_versions(APP, PATH).versions] == list(
        range(keep_all, PRUNED_AT_ONCE, -1)
    )
    put(nexus)
    assert [row.version for row in nexus.vault.list_versions(APP, PATH).versions] == list(
        range(keep_all + 1, keep_all - 4, -1)
    )


def test_the_limit_stays_with_the_path(nexus: NexusCore) -> None:
    """A new incarnation has it; 0 gives it back to the configuration."""
    put(nexus)
    keep(nexus, 2)
    delete(nexus)
    put(nexus, 3)
    page = nexus.vault.list_versions(APP, PATH)
    assert (page.max_versions, page.max_versions_is_own, len(page.versions)) == (2, True, 2)
    keep(nexus, 0)
    page = nexus.vault.list_versions(APP, PATH)
    assert (page.max_versions, page.max_versions_is_own) == (DEFAULT_MAX_VERSIONS, False)


def test_a_destroyed_secret_takes_bounded_room(nexus: NexusCore) -> None:
    """Written and destroyed for ever, it keeps no more rows than its limit."""
    put(nexus)
    keep(nexus, 3)
    for _ in range(8):
        newest = put(nexus).versions[0]
        destroy(nexus, newest - 1)
    assert list_states(nexus) == "xxl"


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        pytest.param("other", 7, id="the limit of all"),
        pytest.param("team", 5, id="at the prefix"),
        pytest.param("team/x", 5, id="below it"),
        pytest.param("team/app", 0, id="at the longer prefix"),
        pytest.param("team/app/db/x", 0, id="below the longer prefix"),
        pytest.param("team/application", 5, id="whole segments"),
        pytest.param("teams", 7, id="another segment that begins alike"),
    ],
)
def test_the_longest_prefix_says_how_many_are_kept(path: str, limit: int) -> None:
    """By whole segments; 0 keeps all."""
    assert Keeping(7, {"team": 5, "team/app": 0}).find_limit(path) == limit
