"""What `shopcrawl show SHOP ITEM` prints: the item as it is, its prices over time, its versions and its sales."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from models.changes import KINDS
from models.feed import Entry
from models.items import FIGURES
from models.profiles import ItemProfile, Sales, Version
from producer.console.changes import change_words
from producer.console.plot import sparkline, step_plot
from producer.console.show import CHANGE_STYLES, TIME, facts_grid
from producer.console.text import joined, number, plain

VERSIONS_SHOWN = 12
FIELDS_SHOWN = 6
"""Changed fields of one version."""
FIRST = {"title", "status", "stock", *(name for name, kind in KINDS.items() if kind == "price")}
PLOT_HEIGHT = 8
PLOT_WIDTH = 100
PRICES = [name for name, kind in KINDS.items() if kind == "price"]


def print_item(console: Console, profile: ItemProfile) -> None:
    """Print the page of an item; times are UTC, prices in yuan."""
    parts: list[RenderableType] = [_title(profile), _place(profile), "", _facts(profile)]
    plot = _prices(profile, min(console.width - 4, PLOT_WIDTH))
    if plot:
        parts += ["", *plot]
    parts += ["", _versions(profile.versions)]
    older = len(profile.versions) - VERSIONS_SHOWN
    if older > 0:
        parts.append(Text(f"and {number(older)} older: `shopcrawl export versions` has them all", "dim"))
    console.print(Padding(Group(*parts), (1, 1)))


def _title(profile: ItemProfile) -> Text:
    return Text(plain(profile.current["title"] or "without a title"), "bold")


def _place(profile: ItemProfile) -> Text:
    gone = profile.gone_at
    state = Text("present", "green") if gone is None else Text(f"gone since {gone:{TIME}}", "red")
    return joined([f"{profile.source} shop {plain(profile.shop, 60)}", f"item {plain(profile.item_id, 60)}", state])


def _facts(profile: ItemProfile) -> Table:
    now, grid = profile.current, facts_grid()
    grid.add_row("seen", f"{profile.first_seen:{TIME}} to {profile.last_seen:{TIME}} (UTC)")
    if profile.events:
        grid.add_row("", joined([_event(entry) for entry in profile.events]))
    category = [" › ".join(now["category_path"] or ()) or now["category_name"] or "", now["category_id"] or ""]
    rows = {
        "prices": joined([_named(now, name) for name in PRICES]),
        "stock": joined([_stock(now), _named(now, "quantity_begin", "smallest order ")]),
        "status": joined([plain(now[name] or "", 40) for name in ("status", "type")]),
        "category": joined([plain(each, 60) for each in category]),
        "sales": _sales(profile.sales),
    }
    for label, words in rows.items():
        if words:
            grid.add_row(label, words)
    return grid


def _event(entry: Entry) -> Text:
    return Text(f"{entry.kind} {entry.at:{TIME}}", CHANGE_STYLES.get(entry.kind, ""))


def _named(values: Mapping[str, Any], name: str, label: str | None = None) -> str:
    """A value with its name before it, which says what it is."""
    shown = f"{name.replace('_', ' ')} " if label is None else label
    return "" if values[name] is None else f"{shown}{values[name]}"


def _stock(now: Mapping[str, Any]) -> str:
    return "" if now["stock"] is None else f"{number(now['stock'])} {plain(now['unit'] or '', 20)}".strip()


def _sales(series: Sequence[Sales]) -> Text:
    """The newest figures, and how those sold in 30 days moved."""
    if not series:
        return Text()
    sold = [each.figures["sold_30d"] for each in reversed(series) if each.figures["sold_30d"] is not None]
    parts = {name: Text(_named(series[0].figures, name)) for name in FIGURES}
    if len(sold) > 1:
        parts["sold_30d"].append(f" {sparkline(sold, 30)}", "cyan")
    return joined(list(parts.values()))


def _prices(profile: ItemProfile, width: int) -> list[RenderableType]:
    """The price over time, or the first of the other prices that there is."""
    for name in PRICES:
        known = [each for each in reversed(profile.versions) if each.fields[name] is not None]
        if known:
            return _plot(name, known, profile, width)
    return []


def _plot(name: str, known: Sequence[Version], profile: ItemProfile, width: int) -> list[RenderableType]:
    steps = [(each.valid_from, Decimal(each.fields[name])) for each in known]
    scale = max(len(f"{value:f}") for _, value in steps) + 2
    plot = step_plot(steps, profile.last_seen, width=max(10, width - scale), height=PLOT_HEIGHT)
    lines = [Text.assemble((axis, "dim"), (line, "cyan")) for axis, line in zip(plot.axis, plot.lines, strict=True)]
    first, last = f"{steps[0][0]:{TIME}}", f"{profile.last_seen:{TIME}}"
    dates = Text(" " * scale + first + last.rjust(len(plot.lines[0]) - len(first)), "dim")
    return [Text(f"{name.replace('_', ' ')} over time (UTC)", "dim"), *lines, dates]


def _versions(versions: Sequence[Version]) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0), expand=True)
    for name in ("since (UTC)", "until"):
        table.add_column(name, no_wrap=True)
    table.add_column("price", justify="right", no_wrap=True)
    table.add_column("what changed", no_wrap=True, ratio=1, overflow="ellipsis")
    for place, each in enumerate(versions[:VERSIONS_SHOWN]):
        before = versions[place + 1] if place + 1 < len(versions) else None
        until = "now" if each.valid_to is None else f"{each.valid_to:{TIME}}"
        price = each.fields["price"]
        table.add_row(f"{each.valid_from:{TIME}}", until, "–" if price is None else str(price), _changed(before, each))
    return table


def _changed(before: Version | None, after: Version) -> Text:
    if before is None:
        return Text("first seen", "dim")
    changed = differences(before.fields, after.fields)
    lines = [
        _change(after, name, *pair) for name, pair in sorted(changed.items(), key=lambda each: each[0] not in FIRST)
    ]
    more = [f"and {len(lines) - FIELDS_SHOWN} more"] if len(lines) > FIELDS_SHOWN else []
    return Text("\n".join([*lines[:FIELDS_SHOWN], *more]))


def _change(version: Version, name: str, was: Any, now: Any) -> str:
    entry = Entry(0, "", "", "", "", version.valid_from, {name: was}, {name: now})
    return plain(change_words(entry), 200)


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that both versions have and that differ, with both values."""
    return {name: (before[name], after[name]) for name in before if before[name] != after.get(name, before[name])}
