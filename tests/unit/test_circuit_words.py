"""How operators are told of what rests."""

from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client import REGISTRY

from models.circuits import OpenCircuit
from producer import metrics
from producer.console.progress import circuit_words


def circuit(shop: str | None = "jane727", **changes: Any) -> OpenCircuit:
    given = {"source": "tmapi", "shop": shop, "shop_crawl": 1 if shop else None, "state": "resting", "level": 1}
    until = datetime(2026, 1, 2, 16, 1, 30, tzinfo=UTC)
    rest = {"share": 0.875, "seconds": 60.0, "until": until, "reason": "417: no data"}
    return OpenCircuit(**{**given, **rest, **changes})


@pytest.mark.parametrize(
    ("circuits", "expected"),
    [
        ([], []),
        ([circuit()], ["tmapi shop jane727 rests (until 16:01:30 UTC), 88% failed: 417: no data."]),
        ([circuit(), circuit("b"), circuit("c")], ["tmapi shop jane727 and 2 more rest (until 16:01:30 UTC)"]),
        ([circuit(None), circuit()], ["all of tmapi rests (until"]),
        ([circuit(state="probing")], ["tmapi shop jane727 rests (one page is tried)"]),
        ([circuit(), circuit(source="top")], ["tmapi shop jane727 rests", "top shop jane727 rests"]),
        ([circuit(state="given up", seconds=None, until=None)], []),
        ([circuit("evil\x1b[31m\nshop")], ["tmapi shop evil"]),
    ],
)
def test_one_line_for_each_source_says_what_rests_until_when_and_why(
    circuits: list[OpenCircuit], expected: list[str]
) -> None:
    words = circuit_words(circuits)
    assert len(words) == len(expected)
    for told, start in zip(words, expected, strict=True):
        assert told.startswith(start)
        assert told.isprintable()


def test_the_gauge_counts_what_rests_by_scope_and_forgets_what_does_not() -> None:
    def shown(scope: str) -> float | None:
        return REGISTRY.get_sample_value("shopcrawl_circuits_open", {"source": "tmapi", "scope": scope})

    metrics.show_circuits("tmapi", [circuit(None), circuit(), circuit("b"), circuit("c", state="given up")])
    assert (shown("source"), shown("shop")) == (1, 2)
    metrics.show_circuits("tmapi", [])
    assert (shown("source"), shown("shop")) == (0, 0)
