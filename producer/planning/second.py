"""The second pass over a shop's listing: pure decisions on which pages are worth another call, within an allowance."""

# Each step is reviewed before the next one: 1 the tail, where new items come; 2 pages that showed too few rows, once
# more, and pages across the borders of two pages between which the listing moved, or where known items may be missing:
# asked for in another size, such a page shows both sides at one moment; 3 price bands, which are short listings of
# their own and tell how many items they have.

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import count

from producer.planning.absence import Gap
from producer.planning.plan import PageFact

TAIL, SEAM, BAND = "tail", "seam", "band"
STEPS = (TAIL, SEAM, BAND)
# Calls of one second pass, however large the shop.
LARGEST = 1_000
OPEN, ENDED = "paging", "done"
CENT = Decimal("0.01")

Prices = Sequence[tuple[Decimal, int]]
"""Different prices in rising order, each with how many items were seen at it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One slice of a second pass, in the columns of table `slice`; `cursor` is the page out or wanted next."""

    number: int
    kind: str
    state: str = OPEN
    cursor: int = 1
    calls: int = 0
    page_size: int | None = None
    price_start: str | None = None
    price_end: str | None = None
    total_last: int | None = None
    lost: int = 0
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether a page of it is out or wanted."""
        return self.state == OPEN


@dataclass(frozen=True, slots=True)
class Need:
    """What a shop crawl left open: items the API counts that nobody saw, and known ones that may be there still."""

    last_page: int
    page_size: int
    unseen: int = 0
    gaps: Sequence[Gap] = ()
    totals: Mapping[int, int | None] = field(default_factory=dict)
    """What each page of the first pass said, by its number."""
    rows: Mapping[int, int] = field(default_factory=dict)
    """How many items each of them showed."""

    @property
    def tail(self) -> bool:
        """Whether something may be found at the listing's end."""
        return self.unseen > 0 or any(gap.before is None for gap in self.gaps)


def allowance(pages: int, share: float, calls: int) -> int:
    """Calls that the second pass over a shop of so many pages may take; none if `share` is 0."""
    return max(calls, min(int(pages * share), LARGEST)) if share else 0


def open_step(begun: int, need: Need, left: int, prices: Prices) -> tuple[int, list[Part]]:
    """The first useful step after those `begun`, with what it reads; without anything to read it was the last.

    `left` calls may be made; without `prices` there are no bands.
    """
    steps = [lambda: _tail(need), lambda: _changed(need, left), lambda: _bands(need, left, prices)]
    for number in range(begun, len(steps)):
        parts = steps[number]() if left > 0 else []
        if parts:
            return number + 1, parts
    return len(steps), []


def _tail(need: Need) -> list[Part]:
    return [Part(0, TAIL, cursor=need.last_page)] if need.tail else []


def _changed(need: Need, left: int) -> list[Part]:
    """Where most is missing, the last one first: pages that fell short, and pages across borders."""
    worth = [(missing, number, True) for number, missing in short_pages(need).items()]
    worth += [(missing, border, False) for border, missing in borders(need).items()]
    best = sorted(worth, reverse=True)[:left]
    parts = []
    for _, number, is_short in sorted(best, key=lambda place: place[1:], reverse=True):
        page, size = (number, None) if is_short else across(number, need.page_size)
        parts.append(Part(0, SEAM, cursor=page, page_size=size))
    return parts


def short_pages(need: Need) -> dict[int, int]:
    """Pages before the last one that showed fewer rows than a full page has, by number, and how many fewer."""
    if not need.unseen:
        return {}
    inside = {number: rows for number, rows in need.rows.items() if number < need.last_page}
    return {number: need.page_size - rows for number, rows in inside.items() if rows < need.page_size}


def borders(need: Need) -> dict[int, int]:
    """Borders, by the number of the page before each, that rows may have crossed unseen, and how many it may hide."""
    worth: dict[int, int] = {}
    for gap in need.gaps:
        if gap.after is not None and gap.before is not None:
            for border in range(min(gap.after, gap.before), max(gap.after, gap.before)):
                worth[border] = worth.get(border, 0) + gap.missing
    for border in range(1, need.last_page) if need.unseen else ():
        before, after = need.totals.get(border), need.totals.get(border + 1)
        if before is not None and after is not None and before > after:  # rows moved up; grown, it hides nothing
            worth[border] = worth.get(border, 0) + before - after
    return worth


def across(border: int, size: int) -> tuple[int, int]:
    """(page, page size) of a page that has the border behind page `border` as near its middle as can be.

    Smaller sizes than `size` are preferred: an API may cap a larger one.
    """
    rows = border * size

    def margin(other: int) -> int:
        return min(rows % other, -rows % other)

    best = max(range(size // 2 + 1, size), key=margin, default=1)
    if margin(best) == 0:
        best = next(other for other in count(size + 1) if margin(other))
    return rows // best + 1, best


def _bands(need: Need, left: int, prices: Prices) -> list[Part]:
    """Half of the calls left open bands, the others read on where one promises more."""
    if need.unseen <= 0 or len(prices) < 2:
        return []
    cuts = quantiles(prices, max(2, left // 2))
    if not cuts:
        return []
    starts = [None, *(_text(cut, ROUND_FLOOR) for cut in cuts)]
    ends = [*(_text(cut, ROUND_CEILING) for cut in cuts), None]
    return [Part(0, BAND, price_start=start, price_end=end) for start, end in zip(starts, ends, strict=True)][:left]


def quantiles(prices: Prices, parts: int) -> list[Decimal]:
    """Different prices that cut the items into up to so many parts of about the same number."""
    cuts: list[Decimal] = []
    seen, items = 0, sum(number for _, number in prices)
    for price, number in prices[:-1]:
        seen += number
        if seen * parts >= items * (len(cuts) + 1) and len(cuts) < parts - 1:
            cuts.append(price)
    return cuts


def _text(price: Decimal, rounding: str) -> str:
    return format(price.quantize(CENT, rounding), "f")


def promised(part: Part, prices: Prices) -> int:
    """Items that a band announced and nobody has seen at its prices."""
    low = Decimal(part.price_start) if part.price_start else None
    high = Decimal(part.price_end) if part.price_end else None
    seen = sum(items for price, items in prices if (low is None or price >= low) and (high is None or price <= high))
    return max(0, (part.total_last or 0) - seen)


def advance(part: Part, fact: PageFact, page_size: int, prices: Prices, left: int) -> Part:
    """Take in the answer to the call that was out: read on, or leave it at that."""
    part = replace(part, calls=part.calls + 1)
    if fact.state != "done":
        reason = f"page {part.cursor}: {fact.reason}"
        return replace(part, state=ENDED, lost=part.lost + 1, reason=reason)
    part = replace(part, total_last=fact.total)
    more = fact.rows >= page_size and (fact.total is None or part.cursor * page_size < fact.total)
    if part.kind == BAND:
        more = more and promised(part, prices) > 0
    if part.kind == SEAM or not more or left <= 0:
        return replace(part, state=ENDED)
    return replace(part, cursor=part.cursor + 1)
