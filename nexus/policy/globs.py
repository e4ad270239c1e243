"""Many globs at once: a tree of their segments that tells which of them match.

Rules:
- A node stands for what a glob has matched so far; globs with the same beginning share nodes.
- A rule is a number, and a set of rules an int with one bit for each. A node is entered only for rules that are wanted.
- Matching keeps every node that is still possible, segment by segment. A node after `**` stays possible.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from nexus.policy.paths import segment_regex

Range: TypeAlias = tuple[str, str]
"""All paths between two texts, neither of them included."""

_BEYOND = "\x7f"  # a character beyond those of paths
_BELOW = "\x01"


class _Node:
    __slots__ = ("below", "deep", "ending", "is_deep", "literal", "partial", "partial_sizes", "star")

    def __init__(self, *, is_deep: bool = False) -> None:
        self.is_deep = is_deep  # after a '**': stays possible whatever comes
        self.below = 0  # rules that go through this node
        self.ending = 0  # rules whose glob ends here
        self.literal: dict[str, _Node] = {}
        self.star: _Node | None = None  # after a segment '*'
        self.deep: _Node | None = None  # after a '**'
        # By the text before the first star ("db-" of "db-*"), and the lengths of those texts.
        self.partial: dict[str, list[tuple[str, Callable[[str], object], _Node]]] = {}
        self.partial_sizes: tuple[int, ...] = ()


class GlobIndex:
    """Globs, given as segments, each with the number of its rule. Nothing may be added while threads match."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, segments: Sequence[str], rule: int) -> None:
        """Add a glob of *rule*; a rule may have several."""
        bit = 1 << rule
        node = self._root
        node.below |= bit
        for segment in segments:
            node = _child(node, segment)
            node.below |= bit
        node.ending |= bit

    def match(self, segments: Sequence[str], *, wanted: int = -1) -> int:
        """Return the rules among *wanted* of which a glob matches all of *segments*, one bit for each."""
        active: dict[_Node, None] = {}  # ordered set
        _reach(active, self._root, wanted)
        for segment in segments:
            following: dict[_Node, None] = {}
            for node in active:
                if node.is_deep:
                    _reach(following, node, wanted)
                if (child := node.literal.get(segment)) is not None:
                    _reach(following, child, wanted)
                if node.star is not None:
                    _reach(following, node.star, wanted)
                for size in node.partial_sizes:
                    for _, is_match, child in node.partial.get(segment[:size], ()):
                        if child.below & wanted and is_match(segment):
                            _reach(following, child, wanted)
            if not following:
                return 0
            active = following
        found = 0
        for node in active:
            found |= node.ending
        return found & wanted


def _reach(nodes: dict[_Node, None], node: _Node, wanted: int) -> None:
    if node.below & wanted:
        nodes[node] = None
        if node.deep is not None:
            _reach(nodes, node.deep, wanted)


def _child(node: _Node, segment: str) -> _Node:
    """Return the node after *segment*; make it if it is new."""
    if segment == "**":
        if node.is_deep:  # '**' after '**' adds nothing
            return node
        if node.deep is None:
            node.deep = _Node(is_deep=True)
        return node.deep
    if segment == "*":
        if node.star is None:
            node.star = _Node()
        return node.star
    if "*" not in segment:
        return node.literal.setdefault(segment, _Node())
    beginning = segment.partition("*")[0]
    bucket = node.partial.setdefault(beginning, [])
    for known, _, child in bucket:
        if known == segment:
            return child
    child = _Node()
    bucket.append((segment, re.compile(segment_regex(segment)).fullmatch, child))
    node.partial_sizes = tuple(sorted({len(known) for known in node.partial}))
    return child


def find_ranges(globs: Iterable[Sequence[str]]) -> tuple[Range, ...]:
    """Return ranges, ascending and apart, outside of which none of *globs*, given as segments, matches a path.

    They follow from what the globs begin with, up to their first star.
    """
    merged: list[Range] = []
    for after, before in sorted({found for glob in globs for found in _list_ranges(glob)}):
        if merged and after < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], before))
        else:
            merged.append((after, before))
    return tuple(merged)


def _list_ranges(glob: Sequence[str]) -> list[Range]:
    count = next((number for number, segment in enumerate(glob) if "*" in segment), len(glob))
    path = "/".join(glob[:count])
    if count == len(glob):
        return [_path_itself(path)]
    below = f"{path}/" if path else ""
    rest = glob[count:]
    if set(rest) == {"**"}:
        return [*([_path_itself(path)] if path else []), _beginning(below)]
    return [_beginning(below + rest[0].partition("*")[0])]


def _path_itself(path: str) -> Range:
    return _predecessor(path), path + _BELOW


def _beginning(text: str) -> Range:
    return (_predecessor(text), text + _BEYOND) if text else ("", _BEYOND)


def _predecessor(text: str) -> str:
    """Return a text after every path that sorts before *text*, and before all that do not."""
    return text[:-1] + chr(ord(text[-1]) - 1) + _BEYOND
