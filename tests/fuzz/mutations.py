"""Hostile input: noise, and real input with its bytes or its structure changed."""

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from common.forms.codec import fields

# Positions are drawn from a fixed range and scaled to the input's size, so that they shrink well.
_SCALE = 2**16
_POSITIONS = st.integers(0, _SCALE - 1)
_PIECES = st.binary(max_size=12) | st.sampled_from([b"\x00", b"\xff" * 4, b"\x80", bytes(8), b"\n", b'"}', b"-----"])
_EDITS = st.tuples(
    st.sampled_from(["flip", "overwrite", "insert", "cut", "delete", "repeat"]), _POSITIONS, _POSITIONS, _PIECES
)
_SCALARS: st.SearchStrategy[Any] = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
_DEPTHS = st.sampled_from([2, 200, 2_000, 200_000])


def mutated(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """Return one of *seeds* with one to four edits of its bytes."""
    return st.builds(_edit, st.sampled_from(seeds), st.lists(_EDITS, min_size=1, max_size=4))


def hostile(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """Return noise, a seed with edits, two seeds one after the other, or a seed as it is."""
    kinds = [st.binary(max_size=80), mutated(*seeds), mutated(*seeds), st.sampled_from(seeds)]
    return st.one_of(*kinds, st.builds(bytes.__add__, st.sampled_from(seeds), st.sampled_from(seeds)))


def hostile_text(*seeds: str) -> st.SearchStrategy[str]:
    """Return any text, or a seed with edits."""
    return st.text(max_size=80) | mutated(*(seed.encode() for seed in seeds)).map(
        lambda raw: raw.decode("utf-8", "replace")
    )


def hostile_fields(parts: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return the codec's form of *parts* with one to three of them changed, missing, doubled or moved; or bytes."""
    changes = st.lists(
        st.tuples(st.sampled_from(["edit", "drop", "double", "swap", "noise"]), _POSITIONS, _EDITS),
        min_size=1,
        max_size=3,
    )
    return st.builds(_change_parts, st.just(tuple(parts)), changes) | hostile(fields(*parts))


def hostile_json(document: bytes) -> st.SearchStrategy[bytes]:
    """Return a JSON document with one to three nodes replaced or removed, or deeply nested, or with edited bytes."""
    changes = st.lists(st.tuples(_POSITIONS, st.just(_REMOVED) | JSON), min_size=1, max_size=3)
    changed = st.builds(_change_nodes, st.just(document), changes)
    nested = st.builds(_nest, st.just(document), _POSITIONS, _DEPTHS, st.sampled_from(["[", '{"a":']))
    return changed | nested | hostile(document) | JSON.map(lambda value: _dump(value).encode())


def _dump(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))  # as the programs write it


def assert_is_short(error: Exception, limit: int) -> None:
    """Require that an error shows its input cut short, however long that was."""
    assert len(str(error)) <= limit, error


class _Removed:
    def __repr__(self) -> str:
        return "REMOVED"


_REMOVED = _Removed()


def _edit(seed: bytes, edits: Sequence[tuple[str, int, int, bytes]]) -> bytes:
    data = bytearray(seed)
    for kind, where, how_far, piece in edits:
        at = where * (len(data) + 1) // _SCALE
        end = at + how_far * (len(data) - at + 1) // _SCALE
        match kind:
            case "flip" if data:
                data[min(at, len(data) - 1)] ^= 1 << how_far % 8
            case "overwrite":
                data[at : at + len(piece)] = piece
            case "insert":
                data[at:at] = piece
            case "cut":
                del data[at:]
            case "delete":
                del data[at:end]
            case "repeat":
                data[at:at] = data[at:end]
    return bytes(data)


def _change_parts(parts: tuple[bytes, ...], changes: Sequence[tuple[str, int, tuple[str, int, int, bytes]]]) -> bytes:
    changed = list(parts)
    for kind, where, edit in changes:
        if not changed:
            break
        at = where * len(changed) // _SCALE
        match kind:
            case "edit":
                changed[at] = _edit(changed[at], [edit])
            case "drop":
                del changed[at]
            case "double":
                changed.insert(at, changed[at])
            case "swap":
                changed[at], changed[-1] = changed[-1], changed[at]
            case "noise":
                changed[at] = edit[3]
    return fields(*changed)


def _change_nodes(document: bytes, changes: Sequence[tuple[int, Any]]) -> bytes:
    tree = [json.loads(document)]
    for where, value in changes:
        places = list(_list_places(tree))
        holder, key = places[where * len(places) // _SCALE]
        if value is not _REMOVED:
            holder[key] = value
        elif holder is not tree:
            del holder[key]
    return _dump(tree[0]).encode()


def _list_places(holder: Any) -> Any:
    """Yield (container, key) of every node below *holder*."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], (dict, list)):
            yield from _list_places(holder[key])


def _nest(document: bytes, where: int, depth: int, opening: str) -> bytes:
    """Put a tower of brackets in place of one node, or around the whole document."""
    tree = [json.loads(document)]
    places = list(_list_places(tree))
    holder, key = places[where * len(places) // _SCALE]
    if isinstance(holder[key], dict):
        holder[key]["unknown"] = "TOWER"
    else:
        holder[key] = "TOWER"
    closing = "]" if opening == "[" else "}"
    tower = opening * depth + "1" + closing * depth
    return _dump(tree[0]).replace('"TOWER"', tower).encode()
