"""How a listing is read by windows of time: pure decisions from what its calls said."""

# A frozen window can only lose rows, for whoever edits a row moves it to a later time. Everything here rests on that:
# pages are read from the last to the first, so that rows which move up are seen twice instead of never; a total that
# stays the same proves that nothing moved; a sibling's rows are known by subtraction, never too few. A window that has
# more rows than a listing shows is read from both ends before it is split: finding the second in which to cut a bulk
# edit would cost more calls.

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from math import ceil

from models.source import WindowRules
from models.windows import ROOT
from producer.planning.plan import Progress
from producer.planning.verdict import TOLERANCE, Verdict

SECOND = timedelta(seconds=1)
PART, CHECK = "part", "check"
COUNTING, PAGING, ENDED, SPLIT, DONE, SHORT = "counting", "paging", "ended", "split", "done", "short"
# Pages that both ends share: rows of one second may come in the same order from either end.
SHARED = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """How a shop's windows are read: the source's rules, rows of a full page, and rows that one listing shows."""

    rules: WindowRules
    size: int
    reach: int

    @property
    def farthest(self) -> int:
        """The last page that may be asked for."""
        return self.reach // self.size

    @property
    def tallest(self) -> int:
        """Pages of the largest window that is read without a split."""
        return max(self.farthest, 2 * self.farthest - SHARED)

    def behind(self, rows: int) -> int:
        """Pages to read from the other end of a window with so many rows."""
        beyond = self.pages(rows) - self.farthest
        return min(beyond + SHARED, self.farthest) if beyond > 0 else 0

    def pages(self, rows: int) -> int:
        """Pages that this many rows fill."""
        return ceil(rows / self.size)


@dataclass(frozen=True, slots=True)
class Slice:
    """One window of a shop crawl, in the columns of table `slice`; times are whole seconds, both ends inclusive.

    `cursor` is the page that is out or wanted next, negative when it counts from the other end, 0 for none.
    """

    number: int
    round: int
    kind: str
    end_at: datetime
    start_at: datetime | None = None
    cid: str | None = None
    state: str = COUNTING
    expected: int | None = None
    rest_end: datetime | None = None
    rest_total: int | None = None
    total_first: int | None = None
    total_last: int | None = None
    cursor: int = 1
    behind: int = 0
    kept_page: int | None = None
    kept_total: int | None = None
    turn: int = 1
    calls: int = 0
    lost: int = 0
    missing: int = 0
    reason: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether a page of it is out or wanted."""
        return self.state in (COUNTING, PAGING)

    @property
    def remaining(self) -> int:
        """Pages still wanted, the one that is out included; an estimate, but 0 only when it is finished."""
        if not self.is_open:
            return 0
        kept = self.kept_page is not None and self.kept_page < self.cursor
        return max(1, self.cursor + self.behind - kept) if self.cursor > 0 else -self.cursor

    @property
    def has_moved(self) -> bool:
        """Whether rows left it while it was read."""
        return (self.total_last or 0) < (self.total_first or 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a call said; `page` as the slice's cursor, `lost`: not had, `too_far`: beyond what the API reaches."""

    page: int
    total: int = 0
    lost: bool = False
    too_far: bool = False
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What follows from an answer: the slice as it is now, windows to open, and whether its categories are wanted."""

    slice: Slice
    opened: tuple[Slice, ...] = ()
    by_category: bool = False


def root(number: int, round: int, start: datetime | None, end: datetime) -> Slice:
    """The slice that covers a whole round; nobody knows yet what is in it."""
    return Slice(number, round, ROOT, end, start)


def advance(part: Slice, answer: Answer, reading: Reading) -> Step:
    """Take in the answer to the call that was out; a slice that comes back as `ended` is to be verified next."""
    part = replace(part, calls=part.calls + 1)
    if answer.too_far:  # `reading` knows the nearer limit by now
        return _anew(part)
    if answer.lost:
        return _lose(part, answer, reading)
    if part.kind == CHECK:
        return Step(replace(part, state=DONE, cursor=0, total_first=answer.total, total_last=answer.total))
    if part.state == COUNTING:
        return _count(part, answer, reading)
    return _go_on(replace(part, total_last=answer.total), answer.page, reading)


def _count(part: Slice, answer: Answer, reading: Reading) -> Step:
    """The first answer tells how many rows there are: read them, or split the window."""
    opened = _rest(part, answer.total, reading)
    first = part.total_first or answer.total
    part = replace(part, total_first=first, total_last=answer.total, behind=reading.behind(answer.total), rest_end=None)
    last = reading.pages(answer.total)
    if last > reading.tallest:
        step = _split(part, answer.total, reading)
    elif answer.page < min(last, reading.farthest):  # had out of turn: good all the same unless rows move
        kept = replace(part, kept_page=answer.page, kept_total=answer.total)
        step = _go_on(kept, min(last, reading.farthest) + 1, reading)
    else:
        step = _go_on(part, answer.page, reading)
    return replace(step, opened=(*step.opened, *opened))


def _go_on(part: Slice, had: int, reading: Reading) -> Step:
    """Read the page below the one had, or the last one there still is, or the first one from the other end."""
    total = part.total_last or 0
    if had < 0:
        page = max(had + 1, -reading.pages(total))
        return _at(part, page, reading)
    if total != part.kept_total:
        part = replace(part, kept_page=None, kept_total=None)
    page = min(had - 1, reading.pages(total))
    if page == part.kept_page:
        page -= 1
    return _at(part, page or -part.behind, reading)


def _at(part: Slice, page: int, reading: Reading) -> Step:
    if abs(page) > reading.farthest:  # another slice has learned meanwhile that less is shown
        return _anew(part)
    return Step(replace(part, state=PAGING if page else ENDED, cursor=page))


def _anew(part: Slice) -> Step:
    """Count again, and decide by a nearer reach."""
    return Step(replace(part, state=COUNTING, cursor=1, behind=0, kept_page=None, kept_total=None))


def _lose(part: Slice, answer: Answer, reading: Reading) -> Step:
    part = replace(part, lost=part.lost + 1, reason=part.reason or f"page {abs(answer.page)}: {answer.reason}")
    if part.state == PAGING:
        return _go_on(part, answer.page, reading)
    return Step(replace(part, state=SHORT, cursor=0), _rest(part, None, reading))


def _rest(part: Slice, counted: int | None, reading: Reading) -> tuple[Slice, ...]:
    """The sibling that waited for this slice's count; where subtraction does not tell it is counted itself."""
    if part.rest_end is None:
        return ()
    # The border second belongs to both, unless the window would then get no smaller.
    start = part.end_at if part.start_at != part.end_at else part.end_at + SECOND
    sibling = Slice(0, part.round, PART, part.rest_end, start)
    if counted is None or part.rest_total is None:
        return (sibling,)
    expected = part.rest_total - counted  # without the rows of the border second
    if expected <= 0:
        return ()
    if reading.pages(expected) > reading.tallest:
        return _split(sibling, None, reading).opened
    return (replace(sibling, expected=expected, cursor=min(reading.pages(expected), reading.farthest)),)


def _split(part: Slice, total: int | None, reading: Reading) -> Step:
    """Halve a window; the right half is opened when the left one is counted. `total` as counted, None if unknown."""
    if _is_second(part, reading):
        return _one_second(part, reading)
    first = part.start_at or reading.rules.earliest
    middle = first + timedelta(seconds=(part.end_at - first) // SECOND // 2)
    left = Slice(0, part.round, PART, middle, part.start_at, rest_end=part.end_at, rest_total=total)
    return Step(replace(part, state=SPLIT, cursor=0), (left,))


def _one_second(part: Slice, reading: Reading) -> Step:
    """No time is left to halve: read what can be reached from both ends; the rest is tried by category."""
    reached = replace(part, state=PAGING, cursor=reading.farthest, behind=reading.farthest, kept_page=None)
    return Step(reached) if part.number else Step(part, (replace(part, state=COUNTING, cursor=1),))


def _is_second(part: Slice, reading: Reading) -> bool:
    return part.end_at <= (part.start_at or reading.rules.earliest)


def categories(part: Slice, cids: Sequence[str]) -> tuple[Slice, ...]:
    """One slice for each category of a second that has more rows than can be reached."""
    return tuple(Slice(0, part.round, PART, part.end_at, part.start_at, cid) for cid in cids)


def verify(part: Slice, forward: Mapping[int, int], backward: Mapping[int, int], reading: Reading) -> Step:
    """Decide on a slice that was read to its end: the places at which its items showed, from this end and the other."""
    total, counted, distinct = part.total_last or 0, part.total_first or 0, len(forward.keys() | backward.keys())
    missing = max(0, total - distinct)
    met = part.behind == 0 or distinct >= counted or ends_meet(forward, backward, counted - total)
    if met and not missing and not part.lost:
        return Step(replace(part, state=DONE))
    if part.lost or (part.turn >= reading.rules.turns and not part.behind):
        return Step(replace(part, state=SHORT, missing=missing))
    if part.behind:
        return _cut(part, counted - distinct, reading)
    again = replace(part, turn=part.turn + 1, kept_page=None, kept_total=None)
    return Step(replace(again, state=COUNTING, cursor=min(reading.pages(total), reading.farthest)))


def ends_meet(forward: Mapping[int, int], backward: Mapping[int, int], moved: int) -> bool:
    """Whether items that showed at these places from either end leave none between them, though so many moved away.

    Items of one second may come in the same order from both ends. But two that change places for sure, for no place
    shifts by more than `moved`, have different times: then every second was read to its end from one side.
    """
    shared = sorted((place, backward[key]) for key, place in forward.items() if key in backward)
    passed, farthest = 0, -1
    for place, other in shared:
        while shared[passed][0] < place - moved:
            farthest = max(farthest, shared[passed][1])
            passed += 1
        if farthest > other + moved:
            return True
    return False


def _cut(part: Slice, missing: int, reading: Reading) -> Step:
    """The ends did not meet, for many rows have one second: halve the window, or read that second by category."""
    if not _is_second(part, reading):
        return _split(part, part.total_last, reading)
    where = "one second" if part.cid is None else f"one second of category {part.cid}"
    part = replace(part, missing=missing, reason=f"too many rows in {where}")
    if part.cid is None:
        return Step(replace(part, state=SPLIT), by_category=True)
    return Step(replace(part, state=SHORT))


def next_slice(slices: Sequence[Slice], now: datetime, rules: WindowRules) -> Slice | None:
    """What to open once every slice has ended: a second count, what was edited meanwhile, or nothing.

    A new round is due when its end lies the rules' margin back.
    """
    current = _last_round(slices)
    whole = current[0]
    if has_moved(slices):
        end = max(now.replace(microsecond=0), whole.end_at)
        return root(0, whole.round + 1, whole.end_at, end) if whole.round < rules.rounds else None
    if whole.state == SPLIT and all(each.kind != CHECK for each in current):
        return Slice(0, whole.round, CHECK, whole.end_at, whole.start_at)
    return None


def has_moved(slices: Sequence[Slice]) -> bool:
    """Whether rows were edited while the last round was read: some of them may have been met nowhere."""
    current = _last_round(slices)
    counts = [each.total_last for each in current if each.kind == CHECK and each.state == DONE]
    return any(each.has_moved for each in current) or any(count != current[0].total_first for count in counts)


def _last_round(slices: Sequence[Slice]) -> list[Slice]:
    """The slices of the newest round, its root first."""
    newest = max(each.round for each in slices)
    return sorted((each for each in slices if each.round == newest), key=lambda each: each.kind != ROOT)


def newest_end(slices: Sequence[Slice]) -> datetime:
    """The time up to which changes are known once all slices are done."""
    return _last_round(slices)[0].end_at


def judge_windows(progress: Progress, slices: Sequence[Slice], distinct: int) -> Verdict:
    """The verdict on a shop whose windows have all ended; `distinct` items were seen."""
    if progress.refusal is not None:
        return Verdict("failed", progress.refusal)
    lost, missing = sum(each.lost for each in slices), sum(each.missing for each in slices if each.state != SPLIT)
    reason = next((each.reason for each in sorted(slices, key=lambda each: not each.lost) if each.reason), "")
    if progress.pages_done == 0:
        return Verdict("failed", f"no page could be had; {reason}")
    if progress.pages_done + progress.pages_dead >= progress.max_pages and any(each.is_open for each in slices):
        return Verdict("partial", f"stopped at the limit of {progress.max_pages} pages before the data ended")
    if lost:
        return Verdict("partial", f"{lost} of {progress.pages_done + lost} pages could not be had: {reason}")
    missing += _unlisted(slices)
    if len({each.round for each in slices}) == 1:  # nothing moved: the first count holds for the whole
        missing = max(0, (_last_round(slices)[0].total_first or 0) - distinct) or missing
    read = sum(each.kind != CHECK and each.state != SPLIT for each in slices)
    shown = f"{distinct} items in {read} window{'s' if read != 1 else ''}"
    if missing:
        found = f"{shown}, {missing} more were announced and never shown{f' ({reason})' if reason else ''}"
        return Verdict("drifted" if missing <= max(1, int(distinct * TOLERANCE)) else "partial", found)
    if has_moved(slices):
        return Verdict("drifted", f"{shown}; still being edited after {max(s.round for s in slices)} rounds")
    return Verdict("complete", shown)


def _unlisted(slices: Sequence[Slice]) -> int:
    """Rows of seconds read by category that no known category has."""
    listed: dict[tuple[int, datetime], dict[str, int]] = defaultdict(dict)
    for each in slices:
        if each.cid is not None:
            listed[each.round, each.end_at][each.cid] = each.total_first or 0
    seconds = {(each.round, each.end_at): each for each in slices if each.state == SPLIT and each.missing}
    return sum(
        max(0, min(each.missing, (each.total_last or 0) - sum(listed[key].values()))) for key, each in seconds.items()
    )
