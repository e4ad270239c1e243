"""Options in words: what an option wants, what it got, and a description of all options of a model."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Meta

_UNITS = {"_s": "seconds", "_ms": "milliseconds", "_days": "days", "_bytes": "bytes", "_mib": "MiB"}
_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_ECHO_LIMIT = 80  # characters; anything longer is more likely the content of a file than an option
_FIELD = re.compile(r"    (\w+):")
_COMMENT = re.compile(r"    # (.*)")


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a model."""

    name: str  # dotted; an option of a table in a list is `list[].option`
    wants: str  # type, bounds and unit in words
    default: Any  # msgspec.NODEFAULT when the option is required
    doc: str  # the comment above the field


def describe(model: type[msgspec.Struct], at: str = "") -> Iterator[Option]:
    """Describe every option of *model*, in its order. Needs the source of the model, for the comments."""
    docs = _comments(model)
    for field in msgspec.structs.fields(model):
        name, item = join(at, field.name), item_type(field.type)
        if is_struct(field.type):
            yield from describe(field.type, name)
        elif is_struct(item):
            yield from describe(item, f"{name}[]")
        else:
            default = field.default if field.default_factory is NODEFAULT else field.default_factory()
            yield Option(name, name_type(field.name, field.type), default, docs.get(field.name, ""))


def name_type(option: str, kind: Any) -> str:
    """Say what an option wants: "an integer of at least 1 (seconds)"."""
    bare, metas = unwrap(kind)
    described = [meta.description for meta in metas if meta.description]
    if described:
        return described[0]
    if get_origin(bare) is Literal:
        return " or ".join(name_value(choice) for choice in get_args(bare))
    if is_struct(bare):
        return "a table"
    if value := value_type(bare):
        return f"a table, each {name_type('', value)}"
    if item := item_type(bare):
        return f"a list, each {name_type('', item)}"
    bounds = [
        f"{word} {limit}"
        for meta in metas
        for word, limit in (("at least", meta.ge), ("more than", meta.gt), ("at most", meta.le), ("less than", meta.lt))
        if limit is not None
    ]
    unit = next((f" ({unit})" for suffix, unit in _UNITS.items() if option.endswith(suffix)), "")
    return _NAMES[bare] + (f" of {' and '.join(bounds)}" if bounds else "") + unit


def name_value(value: Any) -> str:
    """Show a value as it would appear in the file, unless it looks like the content of something else."""
    match value:
        case bool():
            return str(value).lower()
        case str() if not value:
            return "nothing"
        case str() if len(value) > _ECHO_LIMIT or not value.isprintable():
            return f"a string of {len(value)} characters"
        case str():
            return f'"{value}"'
        case dict():
            return "a table"
        case list() | tuple():
            return f"a list of {len(value)}"
        case int() | float():
            return str(value)
        case _:
            return f"a {type(value).__name__}"


def unwrap(kind: Any) -> tuple[Any, tuple[Meta, ...]]:
    """Take `Annotated[…]` off a type; return the type and its annotations."""
    if get_origin(kind) is not Annotated:
        return kind, ()
    bare, *metas = get_args(kind)
    return bare, tuple(meta for meta in metas if isinstance(meta, Meta))


def item_type(kind: Any) -> Any:
    """Return X of `tuple[X, …]`; None when *kind* is not a list."""
    bare, _ = unwrap(kind)
    return get_args(bare)[0] if get_origin(bare) is tuple else None


def value_type(kind: Any) -> Any:
    """Return X of `Mapping[str, X]`; None when *kind* is no table whose keys are free."""
    bare, _ = unwrap(kind)
    return get_args(bare)[1] if get_origin(bare) is Mapping else None


def is_struct(kind: Any) -> bool:
    """Whether a type is a section, or the items of a list of tables."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def join(at: str, name: str) -> str:
    """Append a name to a dotted one, which is empty at the top."""
    return f"{at}.{name}" if at else name


def _comments(model: type[msgspec.Struct]) -> dict[str, str]:
    """Read the comments above the fields of *model* and of the structs that it extends, from their source."""
    docs: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner is msgspec.Struct or not is_struct(owner):
            continue
        comment: list[str] = []
        for line in inspect.getsource(owner).splitlines():
            if found := _COMMENT.match(line):
                comment.append(found[1])
            elif found := _FIELD.match(line):
                docs[found[1]] = " ".join(comment)
            if not line.startswith("    #"):
                comment = []
    return docs
