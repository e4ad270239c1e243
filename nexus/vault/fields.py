"""The fields of one secret version: names and values, and the body that they are encoded as."""

import re
from collections.abc import Mapping, Sequence

from common.errors import CorruptRowError, InvalidArgumentError
from common.forms.codec import fields as encode_parts
from common.forms.codec import parse_fields
from nexus.policy.paths import abbreviate

MAX_FIELDS = 64
MAX_BODY_BYTES = 1024 * 1024  # 1 MiB, once encoded

_FIELD_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check_fields(fields: Mapping[str, bytes]) -> None:
    """Check the fields of one secret version.

    Raises:
        InvalidArgumentError: No field or more than 64, a wrong name, or more than 1 MiB once encoded.
    """
    if not fields:
        raise InvalidArgumentError(f"fields: got none, want 1 to {MAX_FIELDS}")
    _check_some_fields(fields)


def check_patch(fields: Mapping[str, bytes], removed: Sequence[str]) -> None:
    """Check what a patch sets, and the names that it takes out.

    Raises:
        InvalidArgumentError: Nothing to do, more than 64 of either, a wrong name, one in both, or more than 1 MiB.
    """
    if not fields and not removed:
        raise InvalidArgumentError("fields: got none, and none in removed_fields, want 1 or more in either")
    _check_some_fields(fields)
    if len(removed) > MAX_FIELDS:
        raise InvalidArgumentError(f"removed_fields: got {len(removed)}, want at most {MAX_FIELDS}")
    for name in removed:
        _check_name("removed_fields", name)
        if name in fields:
            raise InvalidArgumentError(f"removed_fields: got {abbreviate(name)}, which is in fields as well")


def check_patched(fields: Mapping[str, bytes]) -> None:
    """Check what a patch would leave. Refusals tell nothing of fields that its caller may not read.

    Raises:
        InvalidArgumentError: No field, more than 64, or more than 1 MiB once encoded.
    """
    if not fields:
        raise InvalidArgumentError("removed_fields: no field would be left, want 1 or more")
    try:
        check_fields(fields)
    except InvalidArgumentError:
        raise InvalidArgumentError(
            f"fields: got too much together with the fields that stay, want at most {MAX_FIELDS}, and "
            f"{MAX_BODY_BYTES} bytes once encoded"
        ) from None


def encode_body(fields: Mapping[str, bytes]) -> bytes:
    """Encode checked fields as the body of a secret: the codec over name and value of each, sorted by name."""
    return encode_parts(*(part for name in sorted(fields) for part in (name.encode("ascii"), fields[name])))


def decode_body(body: bytes | memoryview) -> dict[str, bytes]:
    """Decode what `encode_body` encoded, in that one form.

    Raises:
        CorruptRowError: Not pairs, names out of order or twice, or a wrong name.
    """
    parts = parse_fields(body)
    if len(parts) % 2:
        raise CorruptRowError(f"secret body has {len(parts)} parts, want pairs of name and value")
    fields: dict[str, bytes] = {}
    last = ""
    for raw_name, value in zip(parts[::2], parts[1::2], strict=True):
        name = raw_name.decode("ascii", "replace")
        if _FIELD_NAME.fullmatch(name) is None or name <= last:
            raise CorruptRowError(f"field {len(fields) + 1} of a secret body has a wrong name, or is out of order")
        fields[name] = value
        last = name
    return fields


def _check_some_fields(fields: Mapping[str, bytes]) -> None:
    if len(fields) > MAX_FIELDS:
        raise InvalidArgumentError(f"fields: got {len(fields)}, want 1 to {MAX_FIELDS}")
    size = 0
    for name, value in fields.items():
        _check_name("fields", name)
        size += 4 + len(name) + 4 + len(value)
    if size > MAX_BODY_BYTES:
        raise InvalidArgumentError(f"fields: {size} bytes once encoded, want at most {MAX_BODY_BYTES}")


def _check_name(argument: str, name: str) -> None:
    if _FIELD_NAME.fullmatch(name) is None:
        raise InvalidArgumentError(f"{argument}: got the name {abbreviate(name)}, want 1 to 64 of [A-Za-z0-9._-]")
