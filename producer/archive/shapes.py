"""What answers look like: their fields, types and counts in bounded memory, and how two periods differ; purely."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

MOST_KEYS = 100
"""Different keys of one object; more are taken for data (ids, say) and counted as one field, `*`."""
MOST_FIELDS = 5_000
"""Fields of one source; what comes beyond is only counted."""
DEEPEST = 20
LONGEST_SAMPLE = 60
ENOUGH = 5.0
"""Times that a field or type must have been expected for its absence to mean something: by chance, 1 in 150."""

ANY_KEY, ELEMENT = "*", "[]"
NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}
Sampler = Callable[[Any], str]


@dataclass(slots=True)
class Node:
    """One field: how often it had which type, a sample of each, and the fields inside it."""

    types: dict[str, int] = field(default_factory=dict)
    samples: dict[str, str] = field(default_factory=dict)
    inside: dict[str, "Node"] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How often it was there."""
        return sum(self.types.values())

    def absorb(self, other: "Node") -> None:
        """Add what was counted of another field."""
        for name, count in other.types.items():
            self.types[name] = self.types.get(name, 0) + count
            self.samples.setdefault(name, other.samples[name])
        for key, node in other.inside.items():
            self.inside.setdefault(ANY_KEY if ANY_KEY in self.inside else key, Node()).absorb(node)

    def fold(self) -> None:
        """Count all keys as one."""
        whole = Node()
        for node in self.inside.values():
            whole.absorb(node)
        self.inside = {ANY_KEY: whole}


class Shape:
    """The fields of one source's answers; `sample` makes a short text, safe to show, of a value."""

    def __init__(self, sample: Sampler) -> None:
        self.root = Node()
        self.answers = 0
        self.fields = 0
        self.left_out = 0
        """Values of fields beyond MOST_FIELDS or DEEPEST."""
        self._sample = sample

    def add(self, answer: Any) -> None:
        """Count a parsed answer."""
        self.answers += 1
        self._add(self.root, answer, DEEPEST)

    def _add(self, node: Node, value: Any, depth: int) -> None:
        name = NAMES[type(value)]
        known = node.types.get(name, 0)
        node.types[name] = known + 1
        if not known:
            node.samples[name] = self._sample(value)
        if name == "object":
            for key, part in value.items():
                self._step(node, key, part, depth)
        elif name == "list":
            for part in value:
                self._step(node, ELEMENT, part, depth)

    def _step(self, node: Node, key: str, value: Any, depth: int) -> None:
        inside = node.inside.get(key) or node.inside.get(ANY_KEY)
        if inside is None and len(node.inside) >= MOST_KEYS:
            node.fold()
            inside = node.inside[ANY_KEY]
        if inside is None:
            if self.fields >= MOST_FIELDS or depth == 0:
                self.left_out += 1
                return
            self.fields += 1
            inside = node.inside[key] = Node()
        self._add(inside, value, depth - 1)


class Difference(msgspec.Struct, frozen=True):
    """A field that is `new`, `gone`, or whose `type` changed: how often it had which type, and a sample of now.

    Of a field that is gone, the sample is of before. Fields inside one that is new or gone are not told.
    """

    kind: str
    field: str
    before: dict[str, int]
    after: dict[str, int]
    sample: str


def differences(before: Node, after: Node, path: str = "") -> Iterator[Difference]:
    """How a later period's fields differ from an earlier one's, in order of their names."""
    if (ANY_KEY in before.inside) != (ANY_KEY in after.inside) and before.inside and after.inside:
        (after if ANY_KEY in before.inside else before).fold()
    more = after.count / before.count if before.count else 0.0
    for key in sorted(before.inside.keys() | after.inside.keys()):
        one, two, name = before.inside.get(key), after.inside.get(key), _joined(path, key)
        if one is None:
            assert two is not None  # noqa: S101 (the key is of one of them)
            yield Difference("new", name, {}, two.types, _sample_of(two, two.types))
        elif two is None:
            if one.count * more >= ENOUGH:
                yield Difference("gone", name, one.types, {}, _sample_of(one, one.types))
        else:
            yield from _type_change(one, two, name)
            yield from differences(one, two, name)


def _type_change(before: Node, after: Node, name: str) -> Iterator[Difference]:
    """One difference if a field has a type it never had, or lacks one that should have come again; null is no type."""
    more = after.count / before.count
    new = [kind for kind in after.types if kind not in before.types and kind != "null"]
    lost = [
        kind
        for kind, count in before.types.items()
        if kind not in after.types and kind != "null" and count * more >= ENOUGH
    ]
    if new or lost:
        yield Difference("type", name, before.types, after.types, _sample_of(after, new or after.types))


def _sample_of(node: Node, names: Any) -> str:
    """A sample of the commonest of these types."""
    return node.samples[max(names, key=lambda name: node.types[name])]


def _joined(path: str, key: str) -> str:
    if key == ELEMENT:
        return path + ELEMENT
    return f"{path}.{key}" if path else key
