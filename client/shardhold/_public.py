"""Names as users write them."""

from typing import TypeVar

_Class = TypeVar("_Class", bound=type)


def public(kind: _Class) -> _Class:
    """Have *kind* named in tracebacks, reprs and pickles as users import it: `shardhold.DeniedError`."""
    kind.__module__ = "shardhold"
    return kind
