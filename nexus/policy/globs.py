"""Many globs at once: a tree of their segments that tells which of them match.

Rules:
- A node stands for what a glob has matched so far; globs with the same beginning share nodes.
- A rule is a number, and a set of rules an int with one bit for each. A node is entered only for rules that are wanted.
- Matching keeps every node that is still possible, segment by segment. A node after `**` stays possible.
"""

import re
from collections.abc import Callable, Sequence

from nexus.policy.paths import segment_regex


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
