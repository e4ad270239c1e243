"""The tables of pages are what the code says, and say something about all of it."""

import re
from pathlib import Path

import pytest

from common.server.edge import ERROR_DOMAIN
from docs.generate import FOLDER, TABLES, render_page
from docs.tables.errors import INSIDE, REASONS, UNEXPLAINED, list_codes
from shardhold._retries import RETRIED_REASONS

GO = (Path(__file__).parents[2] / "examples" / "go" / "retry.go").read_text()
REPEATED = {reason for reason, advice in REASONS.items() if advice.repeat == "yes"}


@pytest.mark.parametrize("name", TABLES)
def test_a_page_has_the_tables_of_the_code(name: str) -> None:
    """Written by `python docs/generate.py`, and not since changed."""
    assert (FOLDER / name).read_text() == render_page(name)


def test_every_reason_is_explained_once() -> None:
    """Each that an error of the servers has, and no other."""
    assert sorted([*REASONS, *INSIDE]) == sorted(dict(list_codes()))


def test_errors_with_one_reason_have_one_code() -> None:
    """So that a table by reason is true of all of them."""
    pairs = set(list_codes())
    assert len(pairs) == len({reason for reason, _ in pairs})


def test_what_the_sdk_repeats_is_what_the_page_says() -> None:
    """By reason; a failure without one is repeated where its code is."""
    assert RETRIED_REASONS - {""} == REPEATED
    assert {code.name for code, advice in UNEXPLAINED.items() if advice.repeat == "yes"} == {"UNAVAILABLE", "CANCELLED"}


def test_the_example_in_go_repeats_the_same() -> None:
    """And looks for the same domain."""
    assert set(re.findall(r'^\t"(\w*)": +true,', GO, flags=re.M)) == {"", *REPEATED}
    assert f'errorDomain = "{ERROR_DOMAIN}"' in GO
