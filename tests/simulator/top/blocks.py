"""A sorted set of integers that finds ranks, cuts slices and takes edits fast at a million members."""

from array import array
from bisect import bisect_left, bisect_right, insort
from itertools import accumulate

_BLOCK = 1024


class SortedBlocks:
    """Unique 63-bit keys in ascending order, eight bytes each, in blocks."""

    def __init__(self, keys: "array[int]") -> None:
        self._blocks = [keys[at : at + _BLOCK] for at in range(0, len(keys), _BLOCK)] or [array("q")]
        self._firsts = [block[0] if block else 0 for block in self._blocks]
        self._ends: list[int] = []  # members up to and with each block; empty means to be counted anew
        self._count = len(keys)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: int) -> bool:
        block = self._blocks[self._locate(key)]
        at = bisect_left(block, key)
        return at < len(block) and block[at] == key

    def add(self, key: int) -> None:
        """Put in a key that is not there yet."""
        at = self._locate(key)
        block = self._blocks[at]
        insort(block, key)
        if len(block) > 2 * _BLOCK:
            self._blocks[at : at + 1] = [block[:_BLOCK], block[_BLOCK:]]
            self._firsts[at : at + 1] = [block[0], block[_BLOCK]]
        self._count += 1
        self._ends = []

    def remove(self, key: int) -> None:
        """Take out a key; KeyError if it is not there."""
        at = self._locate(key)
        block = self._blocks[at]
        place = bisect_left(block, key)
        if place == len(block) or block[place] != key:
            raise KeyError(key)
        del block[place]
        if not block and len(self._blocks) > 1:
            del self._blocks[at], self._firsts[at]
        self._count -= 1
        self._ends = []

    def rank(self, key: int) -> int:
        """Return how many members are smaller than `key`."""
        at = self._locate(key)
        return self._counted()[at] - len(self._blocks[at]) + bisect_left(self._blocks[at], key)

    def cut(self, start: int, stop: int) -> "array[int]":
        """Return the members ranked from `start` up to, not including, `stop`."""
        keys = array("q")
        ends = self._counted()
        at = bisect_right(ends, start)
        while at < len(ends) and start < stop:
            offset = start - (ends[at] - len(self._blocks[at]))
            piece = self._blocks[at][offset : offset + stop - start]
            keys += piece
            start += len(piece)
            at += 1
        return keys

    def _locate(self, key: int) -> int:
        return max(0, bisect_right(self._firsts, key) - 1)

    def _counted(self) -> list[int]:
        if not self._ends:
            self._ends = list(accumulate(map(len, self._blocks)))
        return self._ends
