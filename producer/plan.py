"""What to fetch next of a shop and when it was enough: pure decisions from what its pages said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from models.ledger import unpack_keys

# Pages beyond the expected end are tried in steps of 1, 2, 4 and 8: each may be empty and is paid for all the same.
LARGEST_STEP = 8
# Pages planned at once; a total that is wildly too large then fills neither ledger nor queue.
LARGEST_PLAN = 1_000
# A gap between the API's total and what was found that a listing in motion explains.
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class PageFact:
    """What one finished page said; `keys` identifies its items and their order."""

    number: int
    state: str
    rows: int = 0
    total: int | None = None
    page_size: int | None = None
    keys: bytes | None = None
    reason: str | None = None
    new_items: int = 0
    changed_items: int = 0
    page_id: int = 0
    slice: int = 0
    outcome: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """A shop crawl as the ledger keeps it; `last_page` is set once the end of the data is proved."""

    planned: int
    max_pages: int
    asked_size: int
    page_size: int | None = None
    total_first: int | None = None
    total_last: int | None = None
    last_page: int | None = None
    end_reason: str | None = None
    extensions: int = 0
    last_dead: int = 0
    last_done: int = 0
    pages_done: int = 0
    pages_dead: int = 0
    pages_cancelled: int = 0
    rows: int = 0
    new_items: int = 0
    changed_items: int = 0
    refusal: str | None = None
    slices: int = 0
    pages_made: int = 0

    @property
    def open_pages(self) -> int:
        """Pages planned that have not come to an end."""
        return self.planned - self.pages_done - self.pages_dead - self.pages_cancelled

    @property
    def expected_pages(self) -> int:
        """Pages the newest total speaks of; 0 if there is none."""
        return ceil(self.total_last / self.page_size) if self.total_last and self.page_size else 0


@dataclass(frozen=True, slots=True)
class Review:
    """The conclusions from a batch of finished pages."""

    progress: Progress
    add: range = field(default=range(0))
    """Numbers of pages to plan."""
    cancel_after: int | None = None
    """Pages with a higher number that have not been sent are not wanted any more."""
    settle: bool = False
    """Nothing is open and nothing more is wanted: judge the shop."""


def absorb(progress: Progress, facts: Sequence[PageFact], known: Mapping[int, PageFact]) -> Progress:
    """Add finished pages to a shop's progress. `known` holds these pages, page 1 and each one's neighbours."""
    for fact in sorted(facts, key=lambda fact: fact.number):
        progress = tally(progress, fact)
        if fact.state == "done":
            progress = _with_totals(progress, fact)
            progress = _with_end(progress, fact, known)
    return progress


def tally(progress: Progress, fact: PageFact) -> Progress:
    """Count one finished page."""
    if fact.state != "done":
        refusal = (fact.reason or "refused") if fact.state == "refused" else None
        return replace(
            progress,
            pages_dead=progress.pages_dead + 1,
            last_dead=max(progress.last_dead, fact.number),
            refusal=progress.refusal or refusal,
        )
    return replace(
        progress,
        pages_done=progress.pages_done + 1,
        rows=progress.rows + fact.rows,
        new_items=progress.new_items + fact.new_items,
        changed_items=progress.changed_items + fact.changed_items,
        last_done=max(progress.last_done, fact.number),
    )


def _with_totals(progress: Progress, fact: PageFact) -> Progress:
    if fact.total is not None:
        first = fact.total if progress.total_first is None else progress.total_first
        progress = replace(progress, total_first=first, total_last=fact.total)
    if fact.number == 1:
        progress = replace(progress, page_size=full_page(fact, progress.asked_size))
    return progress


def full_page(first: PageFact, asked: int) -> int | None:
    """Rows that a full page has, going by page 1: what was returned counts, not what was `asked` for."""
    if first.rows == 0:
        return None
    if first.total != first.rows:  # more is to come, or the total is wrong: then it proves nothing about the end
        return first.rows
    return max(first.rows, first.page_size or asked)


def _with_end(progress: Progress, fact: PageFact, known: Mapping[int, PageFact]) -> Progress:
    end = end_of_data(fact, progress.page_size, known)
    if end is None or (progress.last_page is not None and progress.last_page <= end[0]):
        return progress
    return replace(progress, last_page=end[0], end_reason=end[1])


def end_of_data(fact: PageFact, page_size: int | None, known: Mapping[int, PageFact]) -> tuple[int, str] | None:
    """(last page with data, proof) if this page proves where the data ends, else None.

    Proofs: a valid page without rows; a page that brings nothing which the page before it or page 1 did not have; a
    page shorter than a full one that reaches the API's own total.
    """
    number = fact.number
    if fact.rows == 0:
        return number - 1, f"page {number} is empty"
    for other in (number - 1, 1):
        if 0 < other < number and repeats(fact, known.get(other)):
            return number - 1, f"page {number} repeats page {other}"
    after = known.get(number + 1)
    if after is not None and repeats(after, fact):
        return number, f"page {number + 1} repeats page {number}"
    if fact.total is not None and page_size and fact.rows < page_size and number * page_size >= fact.total:
        return number, f"page {number} is the short last one"
    return None


def repeats(page: PageFact, other: PageFact | None) -> bool:
    """Whether a page with rows brings nothing that the other page did not."""
    if other is None or page.state != "done" or other.state != "done" or not page.rows:
        return False
    return page.keys == other.keys or set(unpack_keys(page.keys)) <= set(unpack_keys(other.keys))


def conclude(progress: Progress) -> Review:
    """Decide what follows from a shop's progress: more pages, fewer, or a verdict."""
    if progress.refusal is not None:
        return Review(progress, cancel_after=0, settle=progress.open_pages == 0)
    if progress.last_page is not None:
        cancel = progress.last_page if progress.planned > progress.last_page else None
        return Review(progress, cancel_after=cancel, settle=progress.open_pages == 0)
    if progress.open_pages > 0:
        return Review(progress)
    target = _next_target(progress)
    if target <= progress.planned:
        return Review(progress, settle=True)
    extended = progress.planned >= progress.expected_pages
    grown = replace(progress, planned=target, extensions=progress.extensions + extended)
    return Review(grown, add=range(progress.planned + 1, target + 1))


def _next_target(progress: Progress) -> int:
    """The page up to which to plan next; not above `planned` when there is no point in going on."""
    if progress.last_done == 0 or progress.last_dead > max(progress.last_done, progress.expected_pages):
        return progress.planned  # nothing can be had, or nothing beyond the expected end can
    if progress.planned < progress.expected_pages:
        target = min(progress.expected_pages, progress.planned + LARGEST_PLAN)
    else:
        target = progress.planned + min(2**progress.extensions, LARGEST_STEP)
    return min(target, progress.max_pages)


@dataclass(frozen=True, slots=True)
class Verdict:
    """`complete`, `drifted`, `partial` or `failed` (None: it was only counted), and why in one line."""

    verdict: str | None
    reason: str


def judge(progress: Progress, distinct: int, lost: Sequence[PageFact]) -> Verdict:
    """The verdict on a shop whose pages have all ended; `distinct` items were seen, `lost` pages were not had."""
    if progress.last_page is not None:  # nothing is missing behind the end, though a call there may have failed
        lost = [fact for fact in lost if fact.number <= progress.last_page]
    if progress.refusal is not None:
        return Verdict("failed", progress.refusal)
    if progress.pages_done == 0:
        first_lost = f"; page {lost[0].number}: {lost[0].reason}" if lost else ""
        return Verdict("failed", f"no page could be had{first_lost}")
    if lost:
        shown = "; ".join(f"page {fact.number}: {fact.reason}" for fact in lost[:3])
        return Verdict("partial", f"{len(lost)} of {progress.pages_done + len(lost)} pages could not be had: {shown}")
    if progress.last_page is None:
        return Verdict("partial", f"stopped at the limit of {progress.max_pages} pages before the data ended")
    return _judge_count(progress, distinct)


def _judge_count(progress: Progress, distinct: int) -> Verdict:
    """The verdict on a shop that was read to its end: does the number of items agree with the API's own total?"""
    total = progress.total_last
    if total is None:
        if distinct == 0:
            return Verdict("partial", "an empty answer without a total")
        return Verdict("complete", f"{distinct} items, {progress.end_reason}; the API gave no total")
    if distinct >= total:
        return Verdict("complete", f"{distinct} items, {progress.end_reason}")
    gap = f"{distinct} of {total} items, {progress.end_reason}"
    first = total if progress.total_first is None else progress.total_first
    movement = abs(total - first) + max(1, int(total * TOLERANCE))
    if distinct > 0 and total - distinct <= movement < total:
        return Verdict("drifted", f"{gap}; the total went from {first} to {total}")
    return Verdict("partial", gap)
