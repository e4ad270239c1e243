"""Messages of a contract with arbitrary field values, and bytes that are almost such messages."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

from tests.fuzz.mutations import hostile_text, mutated

_PATHS = ("team/app/db", "team/../db", "shardhold/x", "**", "spiffe://example.org/team/*", "app", "a" * 600)
_SIZES = st.sampled_from([0, 1, 15, 16, 17, 31, 32, 33, 64, 81, 114, 1216])
_BITS = {
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 9),
}
Known = Mapping[str, bytes]


def hostile_message(message: type[Message], known: Known) -> st.SearchStrategy[bytes]:
    """Return the bytes of a *message* with odd fields, those bytes with edits, or noise.

    *known* holds field values that a caller may know, by name: they let the test reach what lies beyond their checks.
    """
    descriptor: Any = message.DESCRIPTOR
    fields = _build(descriptor, known).map(lambda built: bytes(built.SerializeToString(deterministic=True)))
    return fields | fields | fields.flatmap(mutated) | st.binary(max_size=200)


def _build(descriptor: Descriptor, known: Known) -> st.SearchStrategy[Message]:
    strategies = {field.name: st.none() | _any_value(field, known) for field in descriptor.fields}
    return st.fixed_dictionaries(strategies).map(lambda values: _fill(descriptor, values))


def _any_value(field: FieldDescriptor, known: Known) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return st.dictionaries(_one_value(key, known), _one_value(value, known), max_size=3)
    if field.is_repeated:
        return st.lists(_one_value(field, known), max_size=3)
    return _one_value(field, known)


def _one_value(field: FieldDescriptor, known: Known) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return _build(field.message_type, known)
    if field.type == FieldDescriptor.TYPE_STRING:
        return hostile_text(*_PATHS) | st.sampled_from(_PATHS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        sized = _SIZES.flatmap(lambda size: st.binary(min_size=size, max_size=size))
        value = known.get(field.name)
        return sized if value is None else sized | st.just(value) | mutated(value)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    low, high = _BITS[field.type]
    return st.integers(low, high) | st.sampled_from([0, 1, 2, 3, 255, 256, high]) | st.integers(low, min(high, 5))


def _fill(descriptor: Descriptor, values: Mapping[str, Any]) -> Message:
    message: Message = GetMessageClass(descriptor)()
    for field in descriptor.fields:
        value = values[field.name]
        if value is None:
            continue
        target = getattr(message, field.name)
        if field.is_repeated and hasattr(target, "MergeFrom") and isinstance(value, list):
            target.extend(_encodable(field, one) for one in value)
        elif isinstance(value, dict):
            for key, one in value.items():
                target[_encodable(field, key)] = one
        elif field.message_type is not None:
            target.CopyFrom(value)
        else:
            setattr(message, field.name, _encodable(field, value))
    return message


def _encodable(field: FieldDescriptor, value: Any) -> Any:
    """Leave out text that UTF-8 cannot hold: it could not be sent."""
    return value.encode("utf-8", "ignore").decode() if isinstance(value, str) else value
