"""Proofs of absence: no item on sale is taken for gone, whatever moves while pages are read side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producer.planning.absence import Findings, Gap, Shown, find_absent
from producer.planning.second import Need, across, allowance, borders, open_step


def pages(*rows: str) -> list[list[int]]:
    """One page for each text, one item for each letter."""
    return [[ord(letter) for letter in row] for row in rows]


def shown(*rows: str, ends: bool = True) -> list[Shown]:
    """The first pass over a listing, one page for each text."""
    last = len(rows)
    return [
        Shown(page, number, number == 1, ends and number == last) for number, page in enumerate(pages(*rows), start=1)
    ]


def across_borders(*rows: str) -> list[Shown]:
    return [Shown(page) for page in pages(*rows)]


def letters(findings: Findings) -> str:
    return "".join(map(chr, sorted(findings.proved)))


def find(
    missing: str, prior: Sequence[str], current: Sequence[Shown], between: Sequence[str] = (), *, calm: bool = True
) -> Findings:
    return find_absent(list(map(ord, missing)), pages(*prior), pages(*between), current, calm=calm)


@pytest.mark.parametrize(
    ("missing", "prior", "current", "proved"),
    [
        pytest.param("c", ["abcd", "ef"], shown("abde", "f"), "c", id="neighbours side by side"),
        pytest.param("bc", ["abcd", "ef"], shown("adef"), "bc", id="two in a row"),
        pytest.param("a", ["abcd", "ef"], shown("bcde", "f"), "a", id="the first one"),
        pytest.param("f", ["abcd", "ef"], shown("abcd", "e"), "f", id="the last one"),
        pytest.param("f", ["abcd", "ef"], shown("abcd", "egh"), "f", id="the last one, with new ones behind it"),
        pytest.param("f", ["abcd", "ef"], shown("abcd", "e", ends=False), "", id="the end was not seen"),
        pytest.param("e", ["abcd", "ef"], shown("abcd", "f"), "", id="on a border it may have crossed"),
        pytest.param("e", ["abcd", "ef"], shown("abcd", "f") + across_borders("df"), "e", id="border looked across"),
        pytest.param("e", ["abcd", "ef"], shown("abcd", "f") + across_borders("cd", "bc"), "", id="but not far enough"),
        pytest.param("e", ["abcd", "ef"], shown("abcd", "df"), "e", id="pages that overlap"),
        pytest.param("d", ["abcd", "ef"], shown("abc", "cnef"), "d", id="a new one in its place"),
        pytest.param("abcdef", ["abcd", "ef"], [Shown([], 1, True, True)], "abcdef", id="an empty shop"),
        pytest.param("c", ["abcd", "ef"], shown("badef"), "", id="rows changed places"),
        pytest.param("x", ["abcd", "ef"], shown("abcdef"), "", id="nobody knows where it stood"),
        pytest.param("v", ["abvc", "cde"], shown("abcde"), "v", id="the earlier pages overlapped"),
        pytest.param(
            "v", ["abc", "bvcde"], shown("abcde"), "v", id="a page read earlier shows more than the one before"
        ),
    ],
)
def test_what_lies_between_neighbours_of_one_stretch_is_absent(
    missing: str, prior: list[str], current: list[Shown], proved: str
) -> None:
    assert letters(find(missing, prior, current)) == proved


def test_an_item_known_from_a_page_across_a_border_has_its_place() -> None:
    assert letters(find("x", ["abcd", "ef"], shown("abcdef"), ["cdxe"])) == "x"
    assert find("x", ["abcd", "ef"], shown("abcd", "ef"), ["x"]).unplaced == 1
    assert letters(find("x", ["abcd", "ef"], shown("abcdef"), ["x"])) == "x", "all was seen at once"


def test_an_item_known_from_a_page_across_a_border_may_stand_behind_one_that_was_away_then() -> None:
    findings = find("e", ["abcd", "fgh"], shown("abcd", "fgh"), ["bcef"])
    assert findings.proved == set()
    assert findings.gaps == [Gap(1, 2, 1)]


@pytest.mark.parametrize(
    ("missing", "current", "between", "proved"),
    [
        pytest.param("b", shown("acd", "ef"), [], "b", id="on one page with its neighbours"),
        pytest.param("c", shown("abde", "f"), [], "c", id="a page shows items of both"),
        pytest.param("cd", shown("abe", "f"), [], "", id="nothing shows where that page belongs"),
        pytest.param("cd", shown("abe", "f"), ["bc", "de"], "cd", id="pages across borders did"),
        pytest.param("a", shown("bcde", "f"), [], "a", id="the first one"),
        pytest.param("ef", shown("ab", "cd"), [], "", id="the last ones, of a page that nothing shows to be the last"),
        pytest.param("ef", shown("ab", "cd"), ["de"], "ef", id="of a page that is known to be the last"),
    ],
)
def test_after_much_has_moved_the_order_of_pages_has_to_be_shown(
    missing: str, current: list[Shown], between: list[str], proved: str
) -> None:
    assert letters(find(missing, ["ab", "cd", "ef"], current, between, calm=False)) == proved
    assert letters(find(missing, ["ab", "cd", "ef"], current, between)) == missing


def test_a_gap_names_the_pages_between_which_to_look() -> None:
    findings = find("dh", ["abcd", "efgh"], shown("abc", "efg", ends=False))
    assert findings.gaps == [Gap(1, 2, 1), Gap(2, None, 1)]
    assert borders(Need(2, 3, gaps=findings.gaps)) == {1: 1}


@dataclass
class Shop:
    """A listing in a steady order that moves while it is read: new items come at its end."""

    random: Random
    size: int
    on_sale: list[int]
    churn: float
    next_item: int = 1_000_000
    totals: list[int] = field(default_factory=list)
    fresh: int = 0
    stayed: set[int] = field(default_factory=set)
    """Items on sale since the crawl began."""

    def move(self) -> None:
        while self.random.random() < self.churn:
            if self.on_sale and self.random.random() < 0.5:
                gone = self.on_sale.pop(self.random.randrange(len(self.on_sale)))
                self.stayed.discard(gone)
            else:
                self.on_sale.append(self.next_item)
                self.next_item += 1
                self.fresh += 1

    def page(self, number: int, size: int, *, seam: bool = False) -> Shown:
        rows = self.on_sale[(number - 1) * size : number * size]
        ends = (number - 1) * size + len(rows) == len(self.on_sale)
        self.totals.append(len(self.on_sale))
        self.move()
        return Shown(rows, 0 if seam else number, number == 1, ends)

    def crawl(self, at_once: int) -> list[Shown]:
        """Read all pages, some at once and in an order of chance, and on to the end."""
        self.stayed, self.totals, self.fresh = set(self.on_sale), [], 0
        todo, read = list(range(1, max(1, ceil(len(self.on_sale) / self.size)) + 1)), []
        while todo:
            read.append(self.page(todo.pop(self.random.randrange(min(at_once, len(todo)))), self.size))
            if not todo and max(read, key=lambda page: page.number).keys:
                todo.append(max(page.number for page in read) + 1)
        return sorted((page for page in read if page.keys or page.number == 1), key=lambda page: page.number)

    def look_across(self, count: int) -> list[Shown]:
        """Pages of other sizes at places of chance."""
        sizes = [self.random.randint(2, self.size + 2) for _ in range(count)]
        found = [self.page(self.random.randint(1, len(self.on_sale) // size + 1), size, seam=True) for size in sizes]
        return [page for page in found if page.keys]


@settings(max_examples=1500, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(0, 80), st.sampled_from([0.1, 0.3, 0.5]))
def test_an_item_on_sale_during_the_whole_crawl_is_never_proved_absent(
    seed: int, size: int, items: int, churn: float
) -> None:
    random = Random(seed)
    shop = Shop(random, size, list(range(items)), churn)
    prior, before = shop.crawl(random.choice([1, 3, 10])), shop.look_across(random.randint(0, 3))
    calm = max(shop.totals) - min(shop.totals) + shop.fresh < size
    shop.move()
    current = shop.crawl(random.choice([1, 3, 10])) + shop.look_across(random.randint(0, 6))
    known, seen = ({key for page in read for key in page.keys} for read in ([*prior, *before], current))
    missing = sorted(known - seen)
    earlier, between = [page.keys for page in prior], [page.keys for page in before]
    findings = find_absent(missing, earlier, between, current, calm=calm)
    assert not findings.proved & shop.stayed
    assert findings.proved <= set(missing)
    assert findings.unplaced + len(findings.proved) + sum(gap.missing for gap in findings.gaps) == len(missing)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(1, 90), st.data())
def test_in_a_still_shop_every_item_that_left_is_proved_absent_within_the_allowance(
    size: int, items: int, data: st.DataObject
) -> None:
    random = Random(data.draw(st.integers(0, 2**32)))
    shop = Shop(random, size, list(range(items)), 0)
    prior = [page.keys for page in shop.crawl(10)]
    left = data.draw(st.sets(st.sampled_from(range(items)), min_size=1, max_size=items))
    shop.on_sale = [key for key in shop.on_sale if key not in left]
    current = shop.crawl(10)
    findings = find_absent(sorted(left), prior, [], current)
    need = Need(max(1, len(current)), size, gaps=findings.gaps)
    calls = allowance(len(current), 5, 5)
    _, parts = open_step(0, need, calls, [])
    assert len(parts) <= calls
    current += [shop.page(part.cursor, part.page_size or size, seam=True) for part in parts]
    assert find_absent(sorted(left), prior, [], current).proved == left


@given(st.integers(1, 200), st.integers(1, 5000))
def test_a_page_across_a_border_shows_both_sides_of_it(size: int, border: int) -> None:
    page, other = across(border, size)
    assert (page - 1) * other < border * size < page * other
    assert other != size


def test_many_items_are_compared_in_buckets_with_the_same_result() -> None:
    keys = [key * 11 for key in range(60_000)]
    prior = [keys[start : start + 20] for start in range(0, len(keys), 20)]
    left = set(keys[::3000])
    rest = [key for key in keys if key not in left]
    current = [
        Shown(rest[start : start + 20], start // 20 + 1, start == 0, start + 20 >= len(rest))
        for start in range(0, len(rest), 20)
    ]
    assert find_absent(sorted(left), prior, [], current).proved == left
