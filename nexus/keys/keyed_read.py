"""Reads that need the root key which the store is under, while another one may become current."""

from collections.abc import Callable
from typing import TypeVar

from nexus.keys.opened import Serving
from nexus.keys.root_key import RootKey
from nexus.store.protocol import Reader, Store

T = TypeVar("T")


def read_with_key(store: Store, serving: Serving, load: Callable[[Reader, RootKey], T]) -> T:
    """Return what *load* reads with the root key of *serving*, which the caller has borrowed.

    A root key becomes current a moment after its commit. Whoever reads in between takes a turn at the writer, where
    store and key are of one generation.
    """
    with store.read() as reader:
        root_key = serving.root_key
        if reader.load_meta().generation in (0, root_key.generation):
            return load(reader, root_key)
    return store.write(lambda writer: load(writer, serving.root_key), counts=False)
