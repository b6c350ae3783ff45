"""`shopcrawl costs` and the forecast of `plan` on a real crawl's ledger."""

import csv
import io
import json

import pytest

from tests.e2e.crawled import Crawled

pytestmark = pytest.mark.e2e


def test_costs_are_what_the_crawl_said_in_every_format(crawled: Crawled) -> None:
    made = json.loads(crawled.said.stdout)["calls"]
    told = crawled.here("costs", "--by", "outcome", "--format", "json")
    assert (told.code, told.err) == (0, "")
    found = json.loads(told.out)
    assert {row["outcome"]: row["calls"] for row in found["rows"]} == made
    assert (found["total"]["calls"], found["total"]["cost"]) == (sum(made.values()), "0")
    assert (found["total"]["in_flight"], found["total"]["unknown"]) == (0, 0)
    rows = list(csv.DictReader(io.StringIO(crawled.here("costs", "--by", "shop", "--format", "csv").out, newline="")))
    assert sum(int(row["calls"]) for row in rows[:-1]) == int(rows[-1]["calls"]) == sum(made.values())
    assert "total" in crawled.here("costs", "--since", "1h", "--crawl", "1", "--source", "tmapi").out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--crawl", "99"), "no crawl 99"),
        (("--since", "soon"), "no duration"),
        (("--source", "ebay"), "unknown source"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line(crawled: Crawled, words: tuple[str, str], complaint: str) -> None:
    told = crawled.here("costs", *words)
    assert (told.code, told.out) == (2, "")
    assert complaint in told.err and told.err.count("\n") == 1
