"""The table of changes tells what was and what is in few words, and harmless ones."""

import io
from typing import Any

import pytest
from rich.console import Console

from models.feed import Entry
from producer.console.changes import MOST_COUNTED, change_words, print_changes
from tests.ledger import after


def entry(
    kind: str = "price",
    before: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
    *,
    number: int = 1,
    item_id: str = "612",
) -> Entry:
    return Entry(number, kind, "tmapi", "jane", item_id, after(60.5), before, values, "茶 cup")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (entry("price", {"price": "12.5"}, {"price": "11"}), "12.5 → 11 (-12.0 %)"),
        (entry("price", {"price": "10"}, {"price": "12.345"}), "10 → 12.345 (+23.4 %)"),
        (entry("price", {"agent_price": None}, {"agent_price": "11"}), "agent_price – → 11"),
        (entry("price", {"price": "0"}, {"price": "11"}), "0 → 11"),
        (entry("price", {"price": "1", "agent_price": "4"}, {"price": "2", "agent_price": "3"}),
         "1 → 2 (+100.0 %), agent_price 4 → 3 (-25.0 %)"),
        (entry("new", None, {"title": "茶", "price": "3.9"}), "3.9"),
        (entry("new", None, {"title": "茶"}), ""),
        (entry("gone"), ""),
        (entry("back"), ""),
        (entry("stock", {"stock": 5}, {"stock": 0}), "5 → 0"),
        (entry("title", {"title": "old\nname\u202e"}, {"title": "x" * 99}), f"old name → {'x' * 39}…"),
        (entry("image", {"images": ["a", "b"]}, {"images": ["a", "b", "c"]}), "images 2 entries → 3 entries"),
        (entry("image", {"images": ["a"]}, {"images": ["b"]}), "images changed"),
        (entry("category", {"category_path": None}, {"category_path": ["b"]}), "category_path – → 1 entries"),
    ],
)  # fmt: skip
def test_a_change_in_words(change: Entry, words: str) -> None:
    assert change_words(change) == words


def printed(entries: list[Entry], more: int) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_changes(console, entries, more)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_table_has_a_line_for_each_in_the_given_order() -> None:
    text = printed([entry("gone", item_id="[red]1"), entry("price", {"price": "2"}, {"price": "1"}, number=2)], 0)
    assert text.index("[red]1") < text.index("2 → 1 (-50.0 %)")
    assert "2026-03-01 12:01" in text and "茶 cup" in text and "before these" not in text


@pytest.mark.parametrize(("more", "words"), [(1_234, " 1,234 before"), (MOST_COUNTED, " 10,000 or more before")])
def test_the_table_says_how_many_more_there_are(more: int, words: str) -> None:
    assert words in printed([entry()], more)
