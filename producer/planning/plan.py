"""What to fetch next of a shop and when it was enough: pure decisions from what its pages said."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from math import ceil

from models.ledger import unpack_keys

# Pages beyond the expected end are tried in steps of 1, 2, 4 and 8: each may be empty and is paid for all the same.
LARGEST_STEP = 8
# Pages planned at once; a total that is wildly too large then fills neither ledger nor queue.
LARGEST_PLAN = 1_000
NEVER = datetime.min.replace(tzinfo=UTC)
# Mode of a crawl that wants new items only, from the newest one on.
NEW = "new"


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
    finished_at: datetime | None = None


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
    second_pass: int = 0
    first_distinct: int | None = None
    mode: str = "full"

    @property
    def is_windowed(self) -> bool:
        """Whether the listing is read by windows of time, and not page after page."""
        return self.pages_made > 0

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
    for fact in in_order(facts):
        progress = tally(progress, fact)
        if fact.state == "done":
            progress = _with_totals(progress, fact)
            progress = _with_end(progress, fact, known)
            if progress.mode == NEW and fact.rows and not fact.new_items:
                progress = _ended(progress, fact.number, f"page {fact.number} shows nothing new")
    return progress


def in_order(facts: Iterable[PageFact]) -> list[PageFact]:
    """Pages in the order in which they were had: the newest one knows best how many items there are."""
    return sorted(facts, key=lambda fact: (fact.finished_at or NEVER, fact.number))


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
    return progress if end is None else _ended(progress, *end)


def _ended(progress: Progress, last_page: int, reason: str) -> Progress:
    if progress.last_page is not None and progress.last_page <= last_page:
        return progress
    return replace(progress, last_page=last_page, end_reason=reason)


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
    target = _next_newest(progress) if progress.mode == NEW else _next_target(progress)
    if target <= progress.planned:
        return Review(progress, settle=True)
    extended = progress.planned >= progress.expected_pages
    grown = replace(progress, planned=target, extensions=progress.extensions + extended)
    return Review(grown, add=range(progress.planned + 1, target + 1))


def _next_newest(progress: Progress) -> int:
    """The page after the last one, unless that could not be had: what is new stands before all that is known."""
    return progress.planned if progress.pages_dead else min(progress.planned + 1, progress.max_pages)


def _next_target(progress: Progress) -> int:
    """The page up to which to plan next; not above `planned` when there is no point in going on."""
    if progress.last_done == 0 or progress.last_dead > max(progress.last_done, progress.expected_pages):
        return progress.planned  # nothing can be had, or nothing beyond the expected end can
    if progress.planned < progress.expected_pages:
        target = min(progress.expected_pages, progress.planned + LARGEST_PLAN)
    else:
        target = progress.planned + min(2**progress.extensions, LARGEST_STEP)
    return min(target, progress.max_pages)
