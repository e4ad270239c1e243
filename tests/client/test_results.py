"""What calls return: a secret as a mapping, and nothing that shows a value by itself."""

import pickle
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

import pytest

import shardhold
from shardhold import Secret

CANARY = b"canary-\xff"
FIELDS = MappingProxyType({"key": CANARY, "password": "münchen".encode(), "empty": b""})
SECRET = Secret("team/app/db", 3, bytes(16), FIELDS, datetime(2026, 1, 2, tzinfo=UTC))


def test_is_a_mapping() -> None:
    """A secret is a mapping from names to bytes."""
    assert isinstance(SECRET, Mapping)
    assert (SECRET["password"], SECRET["empty"]) == ("münchen".encode(), b"")
    assert (len(SECRET), list(SECRET), dict(SECRET)) == (3, ["key", "password", "empty"], dict(FIELDS))
    assert ("key" in SECRET, "none" in SECRET) == (True, False)
    assert (SECRET.get("key"), SECRET.get("none"), SECRET.get("none", b"-")) == (CANARY, None, b"-")


def test_text() -> None:
    """The text of a field is decoded from UTF-8."""
    assert (SECRET.text("password"), SECRET.text("empty")) == ("münchen", "")


@pytest.mark.parametrize("read", [Secret.__getitem__, Secret.text])
def test_no_such_field(read: object) -> None:
    """The error for a field that is not there names path, version and the fields there are; it is a KeyError too."""
    assert callable(read)
    with pytest.raises(KeyError) as caught:
        read(SECRET, "pasword")
    assert isinstance(caught.value, shardhold.NoSuchFieldError)
    assert str(caught.value) == ("team/app/db: version 3 has no field 'pasword', it has 'key', 'password', 'empty'")


def test_not_text() -> None:
    """The error for bytes that are no text says what to do, and nothing of the value is in it or behind it."""
    with pytest.raises(ValueError, match="field 'key' of version 3 is not UTF-8 text") as caught:
        SECRET.text("key")
    assert isinstance(caught.value, shardhold.NotTextError)
    assert "read its bytes with ['key']" in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__, caught.value.cause) == (None, None, None)
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_text_form_has_no_value() -> None:
    """The text form of a secret names its fields and shows no value."""
    for shown in (repr(SECRET), str(SECRET), f"{SECRET}", repr([SECRET])):
        assert "canary" not in shown
        assert "password" in shown


@pytest.mark.parametrize("name", shardhold.__all__)
def test_names_are_public(name: str) -> None:
    """Clients, results and errors are named as users import them, also in pickles."""
    kind = getattr(shardhold, name)
    if kind.__module__ != "shardhold.identity":
        assert (kind.__module__, kind.__qualname__) == ("shardhold", name)
    assert pickle.loads(pickle.dumps(kind)) is kind
