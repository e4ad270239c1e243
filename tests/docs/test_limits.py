"""The limits of docs/limits.md that no constant holds are met: the largest is taken, and one more is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import InvalidArgumentError
from common.keys.words import MAX_SHARES, check_counts
from nexus.policy.paths import RESERVED_SEGMENT, check_path, split_glob
from nexus.policy.rules import check_policy_name
from nexus.vault.fields import MAX_BODY_BYTES, MAX_FIELDS, check_fields
from tests.docs.tables import read_sections, read_table

PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()
SECTIONS = read_sections(PAGE)


def check_size(count: int) -> None:
    """Check as many fields as there may be, with names and values of *count* bytes together."""
    names = [f"f{number:02}" for number in range(MAX_FIELDS)]
    fields = dict.fromkeys(names, b"")
    fields[names[0]] = bytes(count - sum(map(len, names)))
    check_fields(fields)


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        pytest.param(check_path, "a" * 128, "a" * 129, id="segment of a path"),
        pytest.param(check_path, "a/.b", "a/..", id="dots"),
        pytest.param(check_path, f"a/{RESERVED_SEGMENT}", f"{RESERVED_SEGMENT}/a", id="reserved"),
        pytest.param(split_glob, "*" + "a" * 127, "*" + "a" * 128, id="segment of a glob"),
        pytest.param(check_policy_name, "a" * 64, "a" * 65, id="name of a policy"),
        pytest.param(lambda name: check_fields({name: b""}), "a" * 64, "a" * 65, id="name of a field"),
        pytest.param(
            check_size, MAX_BODY_BYTES - 8 * MAX_FIELDS, MAX_BODY_BYTES - 8 * MAX_FIELDS + 1, id="one version"
        ),
        pytest.param(lambda count: check_counts(2, count), MAX_SHARES, MAX_SHARES + 1, id="recovery shares"),
        pytest.param(lambda count: check_counts(1, count), 1, 2, id="one share of many"),
    ],
)
def test_the_largest_is_taken_and_one_more_refused(
    check: Callable[[object], None], right: object, wrong: object
) -> None:
    """As the page says."""
    check(right)
    with pytest.raises(InvalidArgumentError):
        check(wrong)


@pytest.mark.parametrize("heading", ["Secrets", "Policies", "Calls", "Connections", "The SDK", "The cluster"])
def test_every_section_has_limits(heading: str) -> None:
    """Three cells in each line, none of them empty, and no limit twice."""
    rows = read_table(SECTIONS[heading])
    assert len(rows) > 2
    assert all(len(row) == 3 and all(row) for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
