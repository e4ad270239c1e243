"""`PATH#FIELD`, in variables and elsewhere: what is accepted, what is refused, and the values that stand there."""

from datetime import UTC, datetime

import pytest

from pilot.errors import NOT_FOUND, PilotError, UsageError
from pilot.programs.reference import Reference, parse_reference, pick_values
from pilot.programs.variables import make_environment, parse_variables
from shardhold import Secret

DB = Reference("team/app/db", "password")
SECRET = Secret(
    "team/app/db", 3, b"i" * 16, {"password": b"canary-1", "user": b"ann"}, datetime(2026, 1, 2, tzinfo=UTC)
)


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        pytest.param("team/app/db#password", DB, id="path and field"),
        pytest.param("team/app/db", Reference("team/app/db", "value"), id="the field value"),
    ],
)
def test_references(text: str, reference: Reference) -> None:
    """A field is named after #; without it, it is the one that `pilot secret put` writes."""
    assert parse_reference(text, of="--env X") == reference


@pytest.mark.parametrize("text", ["", "#password", "team/app/db#", "a#b#c", "a b#c", "a#b c", "a\n#b"])
def test_no_references(text: str) -> None:
    """Anything else is refused, with what refers to it."""
    with pytest.raises(UsageError, match=r"^--env X: got .*, want PATH#FIELD, such as team/app/db#password$"):
        parse_reference(text, of="--env X")


def test_values_are_picked() -> None:
    """Each reference gets its value."""
    assert pick_values([DB], {"team/app/db": SECRET}) == {DB: b"canary-1"}


def test_a_field_that_is_missing() -> None:
    """The error names version, path and field, and the fields that there are, and no value."""
    with pytest.raises(PilotError, match="^version 3 of team/app/db has no field pin$") as caught:
        pick_values([Reference("team/app/db", "pin")], {"team/app/db": SECRET})
    assert (caught.value.hints, caught.value.exit_code) == (("it has: password, user",), NOT_FOUND)


def test_variables() -> None:
    """Several variables may have the same value."""
    variables = parse_variables(["A=team/app/db#password", "_b2=team/app/db#password"])
    assert variables == {"A": DB, "_b2": DB}
    assert make_environment(variables, {DB: "münchen".encode()}) == {
        b"A": "münchen".encode(),
        b"_b2": "münchen".encode(),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["DB_PASSWORD"], "--env: got 'DB_PASSWORD', want NAME=PATH#FIELD", id="no reference"),
        pytest.param(["=a#b"], "--env: got '=a#b'", id="no name"),
        pytest.param(["2B=a#b"], "--env: got '2B=a#b'", id="no name of a variable"),
        pytest.param(["A=a b"], "--env A: got 'a b'", id="no path"),
        pytest.param(["A=a#b", "A=a#c"], "--env: A is given twice", id="twice"),
    ],
)
def test_no_variables(arguments: list[str], said: str) -> None:
    """What is no variable is refused."""
    with pytest.raises(UsageError, match=said):
        parse_variables(arguments)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        pytest.param(b"canary\0", "A: the value of team/app/db#password has a NUL byte, want text", id="NUL"),
        pytest.param(b"canary\xff", "A: the value of team/app/db#password is not UTF-8, want text", id="bytes"),
    ],
)
def test_values_that_fit_no_variable(value: bytes, said: str) -> None:
    """The error says which, without the value, and that a file would do."""
    with pytest.raises(PilotError) as caught:
        make_environment({"A": DB}, {DB: value})
    assert str(caught.value) == said
    assert "--template" in caught.value.hints[0]
    assert caught.value.__cause__ is None
