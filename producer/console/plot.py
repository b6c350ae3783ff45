"""Small pictures made of characters: a line of bars, and a line that holds each value until the next one."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from decimal import Decimal

import msgspec

BARS = "▁▂▃▄▅▆▇█"

# Drawn here: plotting libraries join points by slopes, and a price does not slope from one day to the next.
_FLAT, _RISE = "─", "│"


class Plot(msgspec.Struct, frozen=True):
    """A picture as lines of text: `axis` the scale before each of them, as wide as one another."""

    axis: list[str]
    lines: list[str]


def sparkline(values: Sequence[float], width: int) -> str:
    """One bar for each of the last `width` values, from the lowest to the highest; all alike: half high."""
    shown = values[-width:]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    if low == high:
        return BARS[3] * len(shown)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in shown)


def step_plot(steps: Sequence[tuple[datetime, Decimal]], end: datetime, *, width: int, height: int) -> Plot:
    """Values that each hold from their time on, the last one to `end`; oldest first, at least one.

    `width` counts the columns of the picture without its scale. A column in which several values fell shows them all.
    """
    values = [value for _, value in steps]
    low, high = min(values), max(values)
    rows = 1 if low == high else max(2, height)

    def row_of(value: Decimal) -> int:
        return 0 if low == high else round((high - value) / (high - low) * (rows - 1))

    canvas = [[" "] * width for _ in range(rows)]
    for column, met in enumerate(_columns([(at, row_of(value)) for at, value in steps], end, width)):
        for row, character in _strokes(met):
            canvas[row][column] = character
    labels = {row_of(value): f"{value:f}" for value in [*values, high, low]}
    wide = max(map(len, labels.values()))
    axis = [f"{labels.get(row, ''):>{wide}} {'┤' if row in labels else '│'}" for row in range(rows)]
    return Plot(axis, ["".join(line) for line in canvas])


def _columns(steps: Sequence[tuple[datetime, int]], end: datetime, width: int) -> Iterator[list[int]]:
    """For each column the rows met in it, in order: first the one that the column before ended with."""
    start, place, row = steps[0][0], 0, steps[0][1]
    span = max((end - start).total_seconds(), 1.0)
    for column in range(width):
        met = [row]
        while place < len(steps) and (steps[place][0] - start).total_seconds() * width <= span * (column + 1):
            met.append(steps[place][1])
            place += 1
        row = met[-1]
        yield met


def _strokes(met: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The characters of one column, by row: from the first row met to the last, over all others."""
    first, last, top, bottom = met[0], met[-1], min(met), max(met)
    if top == bottom:
        yield first, _FLAT
        return
    for row in range(top, bottom + 1):
        if row == first == last:
            yield row, "┬" if row == top else "┴" if row == bottom else "┼"
        elif row == first:
            yield row, "╮" if row == top else "╯" if row == bottom else "┤"
        elif row == last:
            yield row, "╭" if row == top else "╰" if row == bottom else "├"
        else:
            yield row, _RISE
