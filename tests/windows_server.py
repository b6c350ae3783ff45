"""A model of a listing by windows of time, in plain Python, and a crawl of it that only the planner decides."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple

from models.source import WindowRules
from models.windows import ROOT
from producer.planning.plan import Progress
from producer.planning.verdict import Verdict
from producer.planning.windows import (
    CHECK,
    ENDED,
    Answer,
    Reading,
    Slice,
    Step,
    advance,
    categories,
    judge_windows,
    next_slice,
    root,
    verify,
)  # fmt: skip

EPOCH = datetime(2003, 1, 1, tzinfo=UTC)
MARGIN = 5
STABLE, SAME, SHUFFLED = "stable", "same", "shuffled"
"""Order within a second: turned round with the listing, the same from either end, or another one at each call."""


def at(second: int) -> datetime:
    """The moment so many seconds after the beginning of the model's time."""
    return EPOCH + timedelta(seconds=second)


def second_of(moment: datetime) -> int:
    """The inverse of `at`."""
    return int((moment - EPOCH).total_seconds())


class TooFarError(Exception):
    """A page beyond what the server reaches."""


class Row(NamedTuple):
    """When a row was modified last, its place among rows of the same second, and its category."""

    second: int
    tie: float
    cid: str


@dataclass
class Seller:
    """Rows by id, and the listing of them; `limit` is what page times size may not exceed, edits set `now`."""

    size: int
    limit: int
    random: Random
    ties: str = STABLE
    inclusive: bool = True
    now: int = 0
    rows: dict[int, Row] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    added: int = 0

    def stock(self, seconds: Iterable[int], cids: int = 3) -> None:
        """Add a row modified at each of these seconds; the clock shows a time after all of them."""
        for second in seconds:
            self.add(second, str(self.random.randrange(cids)))
            self.now = max(self.now, second + 1)

    def add(self, second: int, cid: str = "0") -> None:
        """A new row."""
        self.added += 1
        self.rows[self.added] = Row(second, self.random.random(), cid)

    def edit(self, row: int) -> None:
        """Modify a row now."""
        self.rows[row] = self.rows[row]._replace(second=self.now, tie=self.random.random())

    def remove(self, row: int) -> None:
        """Take a row away for ever."""
        del self.rows[row]
        self.gone.add(row)

    def listing(self, start: int | None, end: int, page: int, cid: str | None) -> tuple[list[int], int]:
        """The ids on a page, counted from the other end if negative, and how many rows there are in the window."""
        number, size = abs(page), self.size
        if number * size > self.limit:
            raise TooFarError
        last = end if self.inclusive else end - 1
        found = [
            (row.second, self.random.random() if self.ties == SHUFFLED else row.tie, key)
            for key, row in self.rows.items()
            if (start is None or start <= row.second) and row.second <= last and cid in {None, row.cid}
        ]
        found.sort(reverse=page < 0)
        if page < 0 and self.ties == SAME:
            found.sort(key=lambda each: (-each[0], each[1]))
        return [key for *_, key in found[(number - 1) * size : number * size]], len(found)


def stirred(seller: Seller, rate: float) -> Callable[[], None]:
    """What happens between two calls: `rate` rows on average are edited, removed or added, and time may pass."""

    def stir() -> None:
        random = seller.random
        while random.random() < rate / (1 + rate):
            seller.now += random.random() < 0.3
            kind = random.choice(("edit", "edit", "edit", "remove", "add"))
            if kind == "add" or not seller.rows:
                seller.add(seller.now)
            elif kind == "remove":
                seller.remove(random.choice(list(seller.rows)))
            else:
                seller.edit(random.choice(list(seller.rows)))

    return stir


@dataclass
class Crawl:
    """A crawl of a seller with `width` calls out at a time, answered and reviewed in any order.

    `stir` happens after each call, `wait` while a round waits for its time; `loss` is the share of calls lost.
    """

    seller: Seller
    reach: int
    width: int = 8
    stir: Callable[[], None] = lambda: None
    wait: Callable[[], None] = lambda: None
    loss: float = 0.0
    rounds: int = 8
    most_calls: int = 100_000
    slices: dict[int, Slice] = field(default_factory=dict)
    places: dict[tuple[int, bool], dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """Where the ids of a slice showed, counted from this end (True) or the other."""
    out: dict[int, Answer | None] = field(default_factory=dict)
    calls: int = 0
    lost: int = 0
    refused: int = 0
    most_open: int = 0

    def __post_init__(self) -> None:
        zero = timedelta(0)
        self.rules = WindowRules(
            reach=self.reach, margin=timedelta(seconds=MARGIN), overlap=zero, earliest=EPOCH, rounds=self.rounds
        )
        self.reading = Reading(self.rules, self.seller.size, self.reach)

    @property
    def shown(self) -> set[int]:
        """The ids met anywhere."""
        return set().union(*self.places.values())

    @property
    def last_end(self) -> int:
        """The second at which the newest round ends."""
        return max(second_of(part.end_at) for part in self.slices.values())

    def run(self) -> Verdict:
        """Crawl to the end and judge."""
        following: Slice | None = root(0, 1, None, at(self.seller.now))
        while following is not None:
            if following.kind == ROOT:
                self.wait()
                self.seller.now = max(self.seller.now, second_of(following.end_at) + MARGIN)
            self._keep(following)
            while self.out:
                self._step()
            following = next_slice(list(self.slices.values()), at(self.seller.now), self.rules)
        progress = Progress(
            planned=self.calls, max_pages=self.most_calls, asked_size=self.seller.size,
            pages_done=self.calls - self.lost - self.refused, pages_dead=self.lost + self.refused,
        )  # fmt: skip
        return judge_windows(progress, list(self.slices.values()), len(self.shown))

    def _step(self) -> None:
        """One of the calls that are out is answered, or an answer is reviewed."""
        self.most_open = max(self.most_open, len(self.out))
        number = self.seller.random.choice(list(self.out)[: self.width])
        answer = self.out[number]
        if answer is None:
            self.out[number] = self._ask(self.slices[number])
        else:
            del self.out[number]
            self._review(number, answer)

    def _ask(self, part: Slice) -> Answer:
        seller, start = self.seller, None if part.start_at is None else second_of(part.start_at)
        assert self.calls < self.most_calls, "it does not end"
        self.calls += 1
        if seller.random.random() < self.loss:
            return Answer(part.cursor, lost=True, reason="no answer")
        try:
            ids, total = seller.listing(start, second_of(part.end_at), part.cursor, part.cid)
        except TooFarError:
            return Answer(part.cursor, too_far=True)
        places = enumerate(ids, (abs(part.cursor) - 1) * seller.size)
        self.places[part.number, part.cursor > 0].update((key, place) for place, key in places)
        self.stir()
        return Answer(part.cursor, total)

    def _review(self, number: int, answer: Answer) -> None:
        if answer.too_far:
            self.refused += 1
            reach = min(self.reading.reach, (abs(answer.page) - 1) * self.seller.size)
            assert reach >= self.seller.limit, "it is refused what it could have"
            self.reading = replace(self.reading, reach=reach)
        self.lost += answer.lost
        step = self._apply(advance(self.slices[number], answer, self.reading))
        if step.slice.state == ENDED:
            self._apply(verify(step.slice, self.places[number, True], self.places[number, False], self.reading))

    def _apply(self, step: Step) -> Step:
        for part in (step.slice, *step.opened):
            self._keep(part)
        if step.by_category:
            cids = {self.seller.rows[key].cid for key in self.shown if key in self.seller.rows}
            for part in categories(step.slice, sorted(cids)):
                self._keep(part)
        return step

    def _keep(self, part: Slice) -> None:
        part = part if part.number else replace(part, number=len(self.slices) + 1)
        self.slices[part.number] = part
        assert (part.remaining == 0) == (not part.is_open), part
        assert part.remaining >= 0, part
        assert abs(part.cursor) * self.seller.size <= self.reading.reach, part
        if part.is_open and part.number not in self.out:
            self.out[part.number] = None

    def counts(self, kind: str = CHECK) -> int:
        """How many slices of a kind there were."""
        return sum(part.kind == kind for part in self.slices.values())
