"""The verdict on a shop crawl whose pages have all ended: pure decisions from its figures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from producer.planning.plan import NEW, PageFact, Progress

# A gap between the API's total and what was found that a listing in motion explains.
TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Verdict:
    """`complete`, `drifted`, `suspect`, `partial` or `failed` (None: only counted), and why in one line."""

    verdict: str | None
    reason: str

    @property
    def is_happy(self) -> bool:
        """Whether the crawl showed what there was."""
        return self.verdict in {"complete", "drifted"}


def judge(progress: Progress, distinct: int, lost: Sequence[PageFact], second_calls: int = 0) -> Verdict:
    """The verdict on a shop that was read page after page.

    `distinct` items were seen, `lost` pages of the first pass were not had, and a second pass took `second_calls`.
    """
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
    if progress.mode == NEW and (progress.rows or not progress.total_last):
        return Verdict(
            "complete", f"{progress.new_items} new items in {progress.last_page} pages, {progress.end_reason}"
        )
    judged = _judge_count(progress, distinct)
    return replace(judged, reason=judged.reason + _second_pass(progress, distinct, second_calls))


def _judge_count(progress: Progress, distinct: int) -> Verdict:
    """The verdict on a shop that was read to its end: does the number of items agree with the API's own total?"""
    total = progress.total_last
    if total is None:
        if distinct == 0:
            return Verdict("partial", "an empty answer without a total")
        return Verdict("complete", f"{distinct} items, {progress.end_reason}; the API gave no total")
    first = total if progress.total_first is None else progress.total_first
    moved = f"; the total went from {first} to {total}" if first != total else ""
    if distinct >= total:
        found = distinct if progress.first_distinct is None else progress.first_distinct
        beyond = f", more than the API's total of {total}" if distinct > max(first, total) + _tolerated(total) else ""
        words = f"{distinct} items{beyond}, {progress.end_reason}"
        return Verdict("complete", words) if found >= total else Verdict("drifted", words + moved)
    gap = f"{distinct} of {total} items, {progress.end_reason}{moved}"
    movement = abs(total - first) + _tolerated(total)
    if distinct > 0 and total - distinct <= movement < total:
        return Verdict("drifted", gap)
    return Verdict("partial", gap)


def _tolerated(items: int) -> int:
    return max(1, int(items * TOLERANCE))


def _second_pass(progress: Progress, distinct: int, calls: int) -> str:
    if progress.first_distinct is None:
        return ""
    gained = distinct - progress.first_distinct
    return f"; a second pass of {calls} call{'s' if calls != 1 else ''} found {gained or 'nothing'} more"


def guarded(verdict: Verdict, distinct: int, known: int | None, suspect: int | None, guard: float) -> Verdict:
    """The verdict on a whole crawl, `suspect` if it lost more than the share `guard` of the items `known` before.

    A crawl that shows as few as the `suspect` one before it confirms that one.
    """
    if not verdict.is_happy or not has_shrunk(distinct, known, guard):
        return verdict
    if is_suspicious(distinct, known, suspect, guard):
        return Verdict("suspect", f"only {distinct} of the {known} items known before: {verdict.reason}")
    return replace(verdict, reason=f"{verdict.reason}; as few as a suspicious crawl before it, from {known}")


def is_suspicious(distinct: int, known: int | None, suspect: int | None, guard: float) -> bool:
    """Whether so few items are not to be believed before a second look."""
    confirmed = suspect is not None and abs(distinct - suspect) <= _tolerated(suspect)
    return has_shrunk(distinct, known, guard) and not confirmed


def has_shrunk(distinct: int, known: int | None, guard: float) -> bool:
    """Whether a shop of `known` items shows fewer than the share `guard` of them allows."""
    return known is not None and known - distinct > guard * known
