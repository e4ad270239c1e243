"""`common.forms.delivery`: everything that a sealed shard is bound to."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from common.forms.delivery import PUT_FORMAT, UNBOUND_FORMAT, SetLabel, build_fetch_info, build_put_info
from common.forms.epoch import StoreEpoch

LABEL = SetLabel(b"c" * 16, b"g" * 32, timeline=1, generation=2, set_id=b"s" * 16, set_number=3)
PUT: dict[str, Any] = {
    "statement_digest": b"d" * 32,
    "x": 4,
    "commitment": b"k" * 32,
    "current_set_id": b"s" * 16,
    "epoch": StoreEpoch(1, 5),
    "put_format": PUT_FORMAT,
}
FETCH: dict[str, Any] = {
    "x": 4,
    "boot_id": b"b" * 16,
    "keeper_id": "spiffe://td/keeper/k",
    "nexus_id": "spiffe://td/nexus/n",
    "public_key": b"p" * 32,
}


def bend(value: Any) -> Any:
    if isinstance(value, StoreEpoch):
        return value._replace(epoch=value.epoch + 1)
    if value == PUT_FORMAT:
        return UNBOUND_FORMAT
    return value + 1 if isinstance(value, int) else value[:-1] + (b"\x00" if isinstance(value, bytes) else "z")


@pytest.mark.parametrize(("build", "parts"), [(build_put_info, PUT), (build_fetch_info, FETCH)], ids=["put", "fetch"])
def test_every_part_counts(build: Callable[..., bytes], parts: dict[str, Any]) -> None:
    """Two infos that differ in one part are never equal."""
    infos = [build(LABEL, **parts)]
    infos += [
        build(replace(LABEL, **{part.name: bend(getattr(LABEL, part.name))}), **parts) for part in fields(SetLabel)
    ]
    infos += [build(LABEL, **{**parts, name: bend(value)}) for name, value in parts.items()]
    assert len(set(infos)) == len(infos) == 1 + len(fields(SetLabel)) + len(parts)


def test_put_and_fetch_differ() -> None:
    """What was sealed for one direction does not open in the other."""
    assert build_put_info(LABEL, **PUT)[:26] != build_fetch_info(LABEL, **FETCH)[:26]
