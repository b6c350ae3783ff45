"""Measured figures with their limits: printed as a table and kept as JSON."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Figure:
    """One measured figure; `limit` is None for a figure that only informs, `at_least` says which side of it is good."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = True

    @property
    def verdict(self) -> str:
        """PASS or FAIL against the limit, or nothing without one."""
        if self.limit is None:
            return ""
        kept = self.value >= self.limit if self.at_least else self.value <= self.limit
        return "PASS" if kept else "FAIL"

    def line(self) -> str:
        """The figure as one line of a table."""
        sign = "at least" if self.at_least else "at most"
        limit = "" if self.limit is None else f"{sign} {self.limit:g}"
        return f"{self.name:<46} {self.value:>12,.3f} {self.unit:<10} {limit:<14} {self.verdict}".rstrip()


def report(name: str, figures: Sequence[Figure], details: Mapping[str, object] | None = None) -> bool:
    """Print the figures and keep them as JSON; returns whether every limit was kept."""
    print(f"\n{name}")
    for figure in figures:
        print(f"  {figure.line()}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "load_15min": os.getloadavg()[2],
        "cores": os.cpu_count(),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
        **(details or {}),
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1))
    return all(figure.verdict != "FAIL" for figure in figures)
