"""Which items have left a listing for certain: pure proofs from the order in which its pages show what is left."""

# A steady order has one place for each item, however many others come and go. A page is a stretch of that order without
# a gap, at the time when it was read; two pages that share an item overlap, and make one stretch. An item that was on
# sale all the time, and whose neighbours on both sides lie in one stretch, would have been seen there. Nothing is
# concluded from counts: an item sold out and another one put on sale leave every total as it was.
#
# Which neighbours an item had, the page says that showed it. Where a neighbour stood on the next page, the order of the
# two pages has to be known: if little moved while they were read it is that of their numbers, unless some page denies
# it; else some page has to show items of both.

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

BUCKETS = 64
SMALL = 100_000
NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Shown:
    """One page as it was read: the keys of its items in order, and whether it begins or ends the whole listing.

    `number` is its place among the pages of the first pass, 0 for pages read across their borders.
    """

    keys: Sequence[int]
    number: int = 0
    begins: bool = False
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing items that may still be on sale between page `after` and page `before`; None: the listing's end."""

    after: int | None
    before: int | None
    missing: int


@dataclass(slots=True)
class Findings:
    """Keys that are absent for certain, and where to look for the others; `unplaced` have no known place."""

    proved: set[int] = field(default_factory=set)
    gaps: list[Gap] = field(default_factory=list)
    unplaced: int = 0


def find_absent(
    missing: Sequence[int],
    prior: Sequence[Sequence[int]],
    across: Sequence[Sequence[int]],
    current: Sequence[Shown],
    *,
    calm: bool = True,
) -> Findings:
    """Judge keys that the `current` crawl has not shown by the pages of an earlier one, all in one steady order.

    `prior` are that crawl's pages from the first to the last, `across` those it read across their borders; `calm` says
    that fewer rows than a page has moved meanwhile. `current` has the pages of the first pass first. If rows changed
    places, nothing is proved.
    """
    numbered, count = _numbered([missing, *prior, *across, *(page.keys for page in current)])
    wanted, earlier = numbered[0], numbered[1 : 1 + len(prior)]
    between, now = numbered[1 + len(prior) : 1 + len(prior) + len(across)], numbered[1 + len(prior) + len(across) :]
    order = _merged(earlier, count)
    rank = array("l", [NOWHERE]) * count
    for place, key in enumerate(order):
        rank[key] = place
    names, stretches = dict(zip(wanted, missing, strict=True)), Stretches(now, current, count)
    borders = Borders(earlier, count)
    if not all(borders.cross(page, rank) for page in (*earlier, *between, *now)):
        return Findings(unplaced=len(missing))
    findings = Findings()
    _look_beside((*earlier, *between), names, stretches, findings)
    _walk(order, names, stretches, borders.chains(calm=calm), findings)
    _place_loose(between, {key for key in names if rank[key] == NOWHERE}, names, stretches, findings)
    return findings


def _numbered(pages: Sequence[Sequence[int]]) -> tuple[list[Sequence[int]], int]:
    """The pages with a small number for each key, and how many there are; arrays, for there may be millions."""
    keys = array("Q")
    for page in pages:
        keys.extend(page)
    buckets = 1 if len(keys) < SMALL else BUCKETS
    places = [array("l") for _ in range(buckets)]
    for place, key in enumerate(keys):
        places[key % buckets].append(place)
    numbers, count = array("l", [0]) * len(keys), 0
    for bucket in places:  # one dictionary at a time: one for all takes a hundred megabytes a million
        known: dict[int, int] = {}
        for place in bucket:
            numbers[place] = known.setdefault(keys[place], count + len(known))
        count += len(known)
    cut: list[Sequence[int]] = []
    start = 0
    for page in pages:
        cut.append(numbers[start : start + len(page)])
        start += len(page)
    return cut, count


def _merged(pages: Iterable[Sequence[int]], count: int) -> Sequence[int]:
    """The one order that these pages show: what a later page alone shows goes beside its neighbours there."""
    head = last = count
    after, before = array("l", [NOWHERE]) * (count + 1), array("l", [NOWHERE]) * (count + 1)
    for page in pages:
        known = next((key for key in page if before[key] != NOWHERE), None)
        cursor = last if known is None else before[known]
        for key in page:
            if before[key] == NOWHERE:
                following = after[cursor]
                after[cursor], before[key], after[key] = key, cursor, following
                if following == NOWHERE:
                    last = key
                else:
                    before[following] = key
            cursor = key
    order, key = array("l"), after[head]
    while key != NOWHERE:
        order.append(key)
        key = after[key]
    return order


class Stretches:
    """Pages that overlap, joined; the beginning and the end of the listing count as items."""

    def __init__(self, pages: Sequence[Sequence[int]], shown: Sequence[Shown], count: int) -> None:
        self._parents = list(range(len(pages)))
        self._shown = shown
        self._page_of = array("l", [NOWHERE]) * (count + 2)
        self.begin, self.end = count, count + 1
        for number, (page, said) in enumerate(zip(pages, shown, strict=True)):
            for key in page:
                self._join(key, number)
            if said.begins:
                self._join(self.begin, number)
            if said.ends:
                self._join(self.end, number)

    def __contains__(self, key: int) -> bool:
        return self._page_of[key] != NOWHERE

    def join(self, before: int, after: int) -> bool:
        """Whether two items lie in one stretch."""
        return (
            before in self and after in self and self._root(self._page_of[before]) == self._root(self._page_of[after])
        )

    def number(self, key: int) -> int | None:
        """The page that shows an item, None if none of the first pass does."""
        return (self._shown[self._page_of[key]].number or None) if key in self else None

    def _join(self, key: int, page: int) -> None:
        if self._page_of[key] == NOWHERE:
            self._page_of[key] = page
        else:
            self._parents[self._root(page)] = self._root(self._page_of[key])

    def _root(self, page: int) -> int:
        while self._parents[page] != page:
            self._parents[page] = page = self._parents[self._parents[page]]
        return page


class Borders:
    """Which pages of an earlier crawl come one after the other, by what other pages show of them."""

    def __init__(self, pages: Sequence[Sequence[int]], count: int) -> None:
        self._last = max(0, len(pages) - 1)
        self._page_of = array("l", [NOWHERE]) * count
        self._shown: set[int] = set()
        self._denied: set[int] = set()
        for number, page in enumerate(pages):
            for key in page:
                if self._page_of[key] == NOWHERE:
                    self._page_of[key] = number

    def cross(self, page: Iterable[int], rank: Sequence[int]) -> bool:
        """Learn from a page what follows what; returns whether items of one earlier page have kept their order."""
        highest: dict[int, int] = {}
        known = [key for key in page if self._page_of[key] != NOWHERE]
        for key in known:
            if rank[key] <= highest.get(self._page_of[key], NOWHERE):
                return False
            highest[self._page_of[key]] = rank[key]
        for one, other in pairwise(known):
            first, second = self._page_of[one], self._page_of[other]
            if rank[one] > rank[other] or first > second:
                self._denied.update(range(min(first, second), max(first, second)))
            elif second == first + 1:
                self._shown.add(first)
        return True

    def chains(self, *, calm: bool) -> Callable[[int], int]:
        """Numbers the items so that those with the same number stand in a certain order, the ends of the listing too.

        `calm`: pages follow each other unless another page denies it.
        """
        certain = set(range(self._last)) if calm else self._shown
        steps = (int(border not in certain or border in self._denied) for border in range(self._last))
        chain = list(accumulate(steps, initial=0))
        begin = len(self._page_of)
        ends = {begin: chain[0], begin + 1: chain[-1]}
        return lambda key: ends[key] if key in ends else chain[self._page_of[key]]


def _look_beside(
    pages: Iterable[Sequence[int]], names: Mapping[int, int], stretches: Stretches, findings: Findings
) -> None:
    """Prove what the very pages that showed an item prove by the others on them."""
    for page in pages:
        for before, missing, after in _runs(page, names, stretches):
            if stretches.join(before, after):
                findings.proved |= {names[key] for key in missing}


def _walk(
    order: Iterable[int],
    names: Mapping[int, int],
    stretches: Stretches,
    chain: Callable[[int], int],
    findings: Findings,
) -> None:
    """Prove the others by the order of all pages, as far as it is certain, and name the gaps in which they may be."""
    for before, run, after in _runs(order, names, stretches):
        missing = [key for key in run if names[key] not in findings.proved]
        if not missing:
            continue
        if stretches.join(before, after) and len({chain(key) for key in (before, *missing, after)}) == 1:
            findings.proved |= {names[key] for key in missing}
        else:
            findings.gaps.append(Gap(stretches.number(before), stretches.number(after), len(missing)))


def _place_loose(
    across: Iterable[Sequence[int]],
    loose: set[int],
    names: Mapping[int, int],
    stretches: Stretches,
    findings: Findings,
) -> None:
    """Name the gaps of items that only pages across borders showed; elsewhere these have no certain place."""
    loose = {key for key in loose if names[key] not in findings.proved}
    for page in across:
        for before, run, after in _runs(page, names, stretches):
            missing = loose.intersection(run)
            if missing and before != stretches.begin and after != stretches.end:
                findings.gaps.append(Gap(stretches.number(before), stretches.number(after), len(missing)))
                loose -= missing
    findings.unplaced = len(loose)


def _runs(
    order: Iterable[int], names: Mapping[int, int], stretches: Stretches
) -> Iterator[tuple[int, Sequence[int], int]]:
    """Missing items side by side, between the last item before and the first one after them that is still there."""
    before, missing = stretches.begin, array("l")
    for key in order:
        if key in stretches:
            if missing:
                yield before, missing, key
                missing = array("l")
            before = key
        elif key in names:
            missing.append(key)
    if missing:
        yield before, missing, stretches.end
