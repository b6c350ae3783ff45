"""Pages about a shop and an item, as a person sees them in the terminal."""

import io
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from models.feed import Entry
from models.items import FIGURES, VALUES
from models.profiles import (
    ItemCounts,
    ItemProfile,
    NextCrawl,
    Sales,
    ShopCrawl,
    ShopProfile,
    Version,
    closest,
)
from producer.console.plot import BARS, sparkline, step_plot
from producer.console.show import print_shop
from producer.console.show_item import VERSIONS_SHOWN, differences, print_item

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
EVIL = "[red]x[/red]\x1b[31m\x1b]0;owned\x07\x9b2J\r\n\u202ehidden\u2066"
DRESS = "连衣裙夏季新款女装小众设计感法式复古碎花裙"


def day(number: float) -> datetime:
    return NOON + timedelta(days=number)


def crawl(number: int, **values: Any) -> ShopCrawl:
    """A whole and complete crawl of the day that is its number."""
    common: dict[str, Any] = {"kind": "crawl", "mode": "full", "whole": True, "verdict": "complete", "reason": None}
    counts = {"distinct": 1000 + number, "total": 1000 + number, "new": 0, "changed": 0, "gone": 0, "calls": 52}
    return ShopCrawl(**{**common, **counts, "crawl": number, "settled_at": day(number), **values})


def event(kind: str, number: float, **values: Any) -> Entry:
    return Entry(1, kind, "tmapi", "b2b-1", "600001", day(number), values.get("before"), values.get("after"), DRESS)


SHOP = ShopProfile(
    source="tmapi",
    shop="b2b-22031471",
    watermark=day(3),
    baseline_at=NOON,
    known_items=1012,
    items=ItemCounts(1012, 7),
    running=21,
    next=NextCrawl(day(22), 3, "adaptive", "full"),
    crawls=[
        crawl(16, mode="new", whole=False, distinct=40, total=None, new=2),
        crawl(15, verdict="partial", reason="page 7 given up: 417 the shop hardly answers", distinct=960),
        crawl(14, verdict="drifted", total=1020, changed=1234, gone=2),
        *(crawl(number) for number in range(13, 0, -1)),
    ],
    changes=[event("new", 1), event("price", 2, before={"price": "4"}, after={"price": "3"}), event("gone", 3)],
)


def version(start: float, end: float | None, **fields: Any) -> Version:
    values = dict.fromkeys(VALUES) | {"title": DRESS, "price": Decimal("3.9"), "extra": None} | fields
    return Version(day(start), None if end is None else day(end), values)


ITEM = ItemProfile(
    source="tmapi",
    shop="b2b-22031471",
    item_id="610947572360",
    first_seen=NOON,
    last_seen=day(9),
    gone_at=None,
    events=[event("new", 0), event("gone", 3), event("back", 4)],
    versions=[
        version(5, None, price=Decimal("3.5"), stock=930, unit="件", category_path=["女装", "连衣裙"], images=["b"]),
        version(2, 5, price=Decimal("4.5"), images=["a"]),
        version(0, 2, title="连衣裙", images=["a"]),
    ],
    sales=[Sales(day(number), dict.fromkeys(FIGURES) | {"sold_30d": sold}) for number, sold in ((9, 20), (5, 4))],
)


def shown(page: Any, width: int = 80) -> str:
    text = io.StringIO()
    console = Console(file=text, width=width, force_terminal=False, color_system=None)
    if isinstance(page, ShopProfile):
        print_shop(console, page)
    else:
        print_item(console, page)
    return text.getvalue()


def line_with(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_a_shops_page_tells_its_state_its_verdicts_and_its_changes() -> None:
    text = shown(SHOP)
    assert line_with(text, "b2b-22031471").split() == ["b2b-22031471", "tmapi", "crawl", "21", "is", "running"]
    assert "1,012 present · 7 gone · 1,012 in the last accepted crawl" in text
    assert "2026-05-23 12:00 by schedule 3 (adaptive, full)" in text
    cells = ["14", "2026-05-15", "12:00", "drifted", "1,014/1,020", "–", "1,234", "2", "52"]
    assert line_with(text, "drifted").split() == cells
    assert line_with(text, "complete new").split()[-5:] == ["40", "2", "–", "–", "52"]
    assert "15  page 7 given up: 417 the shop hardly answers" in text
    changes = text[text.index("latest changes") :].splitlines()[1:4]
    assert [line.split()[3] for line in changes] == ["gone", "price", "new"]
    assert "4 → 3 (-25.0 %)" in changes[1]


def test_only_the_newest_verdicts_are_listed_and_only_whole_crawls_that_can_be_trusted_are_drawn() -> None:
    text = shown(SHOP)
    listed = [line for line in text.splitlines() if "complete" in line or "drifted" in line or "partial " in line]
    assert len(listed) == 12
    trend = line_with(text, "over time")
    assert sum(trend.count(bar) for bar in BARS) == 14
    assert "1,001 to 1,014 in 14 whole crawls" in trend


def test_reasons_stand_beside_the_verdicts_where_there_is_room() -> None:
    text = shown(SHOP, width=160)
    assert "page 7 given up" in line_with(text, "partial ")
    assert text.count("page 7 given up") == 1


def test_large_counts_are_shown_in_full_at_80_columns() -> None:
    counts = {"distinct": 123_456, "total": 124_000, "new": 12_345, "changed": 99_999, "gone": 999, "calls": 6_200}
    text = shown(replace(SHOP, crawls=[crawl(12_345, mode="new", whole=False, **counts)]))
    assert line_with(text, "12345").split()[-5:] == ["123,456/124,000", "12,345", "99,999", "999", "6,200"]


def test_a_shop_that_was_never_crawled_has_a_page() -> None:
    bare = ShopProfile("top", "new", None, None, None, ItemCounts(0, 0), None, None, [], [])
    text = shown(bare)
    assert "0 present" in text and "no crawl of it has ended yet" in text
    assert "more than 50,000 stored" in shown(replace(bare, items=None))


def test_an_items_page_tells_what_it_is_and_what_became_of_it() -> None:
    text = shown(ITEM)
    assert DRESS in text
    assert "tmapi shop b2b-22031471 · item 610947572360 · present" in text
    assert "new 2026-05-01 12:00 · gone 2026-05-04 12:00 · back 2026-05-05 12:00" in text
    assert line_with(text, "prices").split() == ["prices", "price", "3.5"]
    assert "930 件" in text and "女装 › 连衣裙" in text
    assert "sold 30d 20 ▁█" in text
    assert "gone since 2026-05-08 12:00" in shown(replace(ITEM, gone_at=day(7)))


def test_versions_tell_what_changed_since_the_one_before() -> None:
    lines = shown(ITEM, 120)
    table = lines[lines.index("since (UTC)") :].splitlines()[1:]
    assert table[0].split() == ["2026-05-06", "12:00", "now", "3.5", "price", "4.5", "→", "3.5", "(-22.2", "%)"]
    assert [line.strip() for line in table[1:5]] == [
        "stock – → 930",
        "images changed",
        "category_path – → 2 entries",
        "unit – → 件",
    ]
    assert f"title 连衣裙 → {DRESS}" in table[5]
    assert "price 3.9 → 4.5 (+15.4 %)" in table[6]
    assert table[7].split()[-3:] == ["3.9", "first", "seen"]


def test_many_versions_are_cut_to_the_newest_and_none_but_the_oldest_is_called_first_seen() -> None:
    many = [version(number, None if number == 40 else number + 1, stock=number) for number in range(40, 0, -1)]
    text = shown(replace(ITEM, versions=many))
    assert text.count("stock ") == VERSIONS_SHOWN + 1  # and its label
    assert "first seen" not in text
    assert "and 28 older" in text


def test_a_page_without_prices_has_no_plot_and_one_with_another_price_draws_that() -> None:
    bare = replace(ITEM, versions=[version(0, None, price=None, title=None)], sales=[])
    assert "over time" not in shown(bare) and "without a title" in shown(bare)
    other = replace(ITEM, versions=[version(0, None, price=None, wholesale_price=Decimal(2))])
    assert "wholesale price over time" in shown(other)


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("page", [SHOP, ITEM], ids=["shop", "item"])
def test_no_line_is_wider_than_the_terminal(page: Any, width: int) -> None:
    assert max(cell_len(line) for line in shown(page, width).splitlines()) <= width


def test_foreign_words_are_text_and_nothing_else() -> None:
    evil = [crawl(1, verdict="partial", reason=EVIL)]
    changes = [replace(event("title", 1, before={"title": EVIL}, after={"title": "b"}), item_id=EVIL, title=EVIL)]
    fields = {"title": EVIL, "unit": EVIL, "stock": 1, "status": EVIL, "category_path": [EVIL], "category_id": EVIL}
    versions = [version(1, None, **fields), version(0, 1)]
    for text in (
        shown(replace(SHOP, shop=EVIL, crawls=evil, changes=changes), 160),
        shown(replace(ITEM, shop=EVIL, item_id=EVIL, versions=versions), 160),
    ):
        assert "[red]x[/red]" in text
        assert not {"\x1b", "\x07", "\x9b", "\r", "\u202e", "\u2066"} & set(text)


def test_differences_are_the_fields_that_both_versions_have() -> None:
    assert differences({"a": 1, "b": [1], "c": None}, {"a": 2, "b": [1], "c": 3, "extra": 1}) == {
        "a": (1, 2),
        "c": (None, 3),
    }


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([5], "▄"), ([5, 5], "▄▄"), ([0, 7], "▁█"), (list(range(8)), BARS), ([9, 0, 7], "▁█")],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest_of_the_newest_values(values: list[float], line: str) -> None:
    assert sparkline(values, 2 if len(values) == 3 else 20) == line


def drawn(steps: list[tuple[float, str]], end: float, width: int = 12, height: int = 3) -> list[str]:
    plot = step_plot([(day(at), Decimal(value)) for at, value in steps], day(end), width=width, height=height)
    return [axis + line for axis, line in zip(plot.axis, plot.lines, strict=True)]


def test_a_price_holds_until_it_changes() -> None:
    assert drawn([(0, "1"), (4, "3"), (8, "2")], 12) == [
        "3 ┤   ╭───╮    ",
        "2 ┤   │   ╰────",
        "1 ┤───╯        ",
    ]


def test_a_price_that_never_changed_is_one_line() -> None:
    assert drawn([(0, "3.9")], 9) == ["3.9 ┤────────────"]
    assert drawn([(0, "3.9")], 0) == ["3.9 ┤────────────"]


def test_a_spike_between_two_columns_is_seen() -> None:
    assert drawn([(0, "1"), (5.1, "3"), (5.2, "1")], 12) == [
        "3 ┤     │      ",
        "  │     │      ",
        "1 ┤─────┴──────",
    ]


@given(
    steps=st.lists(st.tuples(st.floats(0, 100), st.decimals(0, 10**6, places=2)), min_size=1, max_size=30),
    width=st.integers(10, 100),
    height=st.integers(1, 12),
)
def test_every_plot_fills_its_frame_and_names_its_extremes(
    steps: list[tuple[float, Decimal]], width: int, height: int
) -> None:
    ordered = sorted(((day(at), value) for at, value in steps), key=lambda step: step[0])
    plot = step_plot(ordered, day(101), width=width, height=height)
    assert {len(line) for line in plot.lines} == {width}
    assert len({len(axis) for axis in plot.axis}) == 1
    assert all(any(line[column] != " " for line in plot.lines) for column in range(width))
    values = [value for _, value in ordered]
    assert plot.axis[0].split()[0] == f"{max(values):f}"
    assert plot.axis[-1].split()[0] == f"{min(values):f}"


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("b2b-2203147", ["b2b-22031471", "b2b-22031479"]),
        ("22031471", ["b2b-22031471", "b2b-22031479"]),
        ("b2b-22301471", ["b2b-22031471", "b2b-22031479"]),
        ("zzz", []),
        ("", []),
    ],
)
def test_keys_that_look_like_the_wanted_one_are_suggested(wanted: str, found: list[str]) -> None:
    assert closest(wanted, ["other", "b2b-22031479", "b2b-22031471"])[:2] == found
