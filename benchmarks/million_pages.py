"""A ledger of a million pages: does dispatch stay as quick, and how much memory do producer and Redis take?"""

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.figures import Figure, report
from benchmarks.rig import PRODUCER, Rig, peak_megabytes, rig
from tests.servers import wait_until

NAME = "million_pages"
PAGES = 1_000_000
PAGES_PER_SHOP = 500
CAPACITY = 8_000  # eight workers of a thousand pages each: the producer keeps twice as many messages out
LEAST_SHARE = 0.8
MOST_PRODUCER_MEGABYTES = 200.0
MOST_REDIS_MEGABYTES = 64.0
STEPS = 10
POLL = 1.0
LONGEST = 7200.0

SHOPS = """
INSERT INTO shop (source, key, created_at) SELECT 'tmapi', 'shop' || n, now() FROM generate_series(1, {shops}) n;
INSERT INTO crawl (kind, state, fingerprint, priority, options, created_at)
    VALUES ('crawl', 'running', 'benchmark', 5, '{{}}', now());
INSERT INTO shop_crawl (crawl_id, shop_id, kind, state, priority, options, planned, created_at)
    SELECT 1, id, 'crawl', 'open', 5, '{{"page_size": 1, "max_pages": 5000, "sort": "time_up"}}', {pages}, now()
    FROM shop ORDER BY id;
"""
# As a crawl makes them: page 1 of every shop first, then the others shop by shop.
LEDGER = """
INSERT INTO page (shop_crawl_id, source, number, priority, rank, state, reviewed, fence, tries, crashes, due_at)
    SELECT c.id, 'tmapi', n, 5, n, 'ready', true, 0, 0, 0, now() FROM shop_crawl c, generate_series({first}, {last}) n
    ORDER BY c.id, n
"""
# What the dispatcher asks for, without taking it.
DUE = """
EXPLAIN (ANALYZE, BUFFERS, COSTS OFF) SELECT id FROM page
    WHERE state = 'ready' AND source = 'tmapi' AND due_at <= now()
    ORDER BY priority, rank, id LIMIT 1000 FOR UPDATE SKIP LOCKED
"""
NEXT = "SELECT rank FROM page WHERE state = 'ready' AND source = 'tmapi' ORDER BY priority, rank, id LIMIT 1"
RATE = """
WITH numbered AS (SELECT sent_at, row_number() OVER (ORDER BY sent_at) AS nth FROM page WHERE sent_at IS NOT NULL)
SELECT ({last} - {first}) / extract(epoch FROM max(sent_at) - min(sent_at)) FROM numbered
    WHERE nth BETWEEN {first} AND {last}
"""
TABLE = """
SELECT n_dead_tup, n_live_tup, autovacuum_count, pg_relation_size('page') >> 20, pg_relation_size('ix_page_ready') >> 20
    FROM pg_stat_user_tables WHERE relname = 'page'
"""


class Ledger:
    """The benchmark's database."""

    def __init__(self, bench: Rig, shops: int, pages: int) -> None:
        self.url = bench.fresh("million")
        self._execute = bench.postgres.execute
        self.shops, self.pages = shops, pages

    def sql(self, text: str) -> str:
        """Run a statement and return what it prints."""
        return self._execute(text, database="million")

    def fill(self) -> None:
        """Make the shops and their pages, none of them sent yet."""
        self.sql(SHOPS.format(shops=self.shops, pages=self.pages))
        self.sql(LEDGER.format(first=1, last=1))
        self.sql(LEDGER.format(first=2, last=self.pages))
        self.sql("VACUUM ANALYZE")

    @property
    def progress(self) -> float:
        """The share of pages sent: all shops advance together, so the next page's rank tells it without counting."""
        rank = self.sql(NEXT)
        return (int(rank) - 1) / self.pages if rank else 1.0

    def rate(self, first: float, last: float) -> float:
        """Pages sent per second between these shares of all pages."""
        total = self.shops * self.pages
        return float(self.sql(RATE.format(first=int(total * first) + 1, last=int(total * last))))

    def observe(self) -> dict[str, object]:
        """How the table stands, and what finding the next pages costs now."""
        dead, live, vacuums, table, index = map(int, self.sql(TABLE).split("|"))
        plan = self.sql(DUE)
        seconds = next(line for line in plan.splitlines() if line.startswith("Execution Time")).split()[2]
        sizes = {"dead": dead, "live": live, "autovacuums": vacuums, "table_mb": table, "ready_index_mb": index}
        return {**sizes, "find_ms": float(seconds), "plan": plan.splitlines()}


def measure(options: argparse.Namespace) -> bool:
    """Send and finish every page, print and keep the figures; returns whether the limits were kept."""
    with rig() as bench:
        shops = max(1, options.pages // PAGES_PER_SHOP)
        ledger = Ledger(bench, shops, PAGES_PER_SHOP)
        ledger.fill()
        environment = bench.environment(ledger.url)
        with bench.process("fleet", fleet_command(bench, ledger.url), environment):
            bench.await_workers(1)
            with bench.process("producer", PRODUCER, environment) as producer:
                observations = watch(ledger)
                memory = peak_megabytes(producer)
        with bench.redis.client() as client:
            redis = client.info("memory")["used_memory_peak"] / 2**20
        figures = judge(ledger, memory, redis, observations)
    return report(NAME, figures, {"pages": shops * PAGES_PER_SHOP, "observations": observations})


def fleet_command(bench: Rig, database: str) -> list[str]:
    """The arguments that start the fake fleet; it lets the queue fill before it takes the first message."""
    options = {
        "--redis": bench.redis.url, "--database": database, "--pages": PAGES_PER_SHOP,
        "--capacity": CAPACITY, "--window": 2 * CAPACITY,
    }  # fmt: skip
    return [sys.executable, "-m", "benchmarks.fake_workers", *(str(word) for pair in options.items() for word in pair)]


def watch(ledger: Ledger) -> list[dict[str, object]]:
    """Observe the ledger at every tenth of the way, until its crawl is finished."""
    observations: list[dict[str, object]] = []
    started = time.monotonic()
    for step in range(STEPS):
        while ledger.progress < step / STEPS and time.monotonic() < started + LONGEST:
            time.sleep(POLL)
        seen = {"sent": ledger.progress, "seconds": time.monotonic() - started, **ledger.observe()}
        observations.append(seen)
        shown = {name: value for name, value in seen.items() if name != "plan"}
        print("  " + "  ".join(f"{name} {value:,.2f}" for name, value in shown.items()), flush=True)
    finished = "SELECT count(*) FROM crawl WHERE state = 'finished'"
    wait_until(lambda: ledger.sql(finished) == "1", within=LONGEST, what="the end of the crawl")
    return observations


def judge(ledger: Ledger, memory: float, redis: float, observations: Sequence[dict[str, object]]) -> list[Figure]:
    """The figures and their limits; at first the queue is filled, with the machine's cores for the producer alone."""
    complete = ledger.sql("SELECT count(*) FROM shop_crawl WHERE verdict = 'complete'")
    if int(complete) != ledger.shops:
        raise RuntimeError(f"only {complete} of {ledger.shops} shops are complete: the figures mean nothing")
    filled = max(0.05, 3 * CAPACITY / (ledger.shops * ledger.pages))
    start, end = ledger.rate(filled, filled + 0.15), ledger.rate(0.85, 1)
    return [
        Figure("dispatch at the end as a share of the start", end / start, "", LEAST_SHARE),
        Figure("producer's largest memory (RSS)", memory, "MB", MOST_PRODUCER_MEGABYTES, at_least=False),
        Figure("Redis' largest memory", redis, "MB", MOST_REDIS_MEGABYTES, at_least=False),
        Figure(f"dispatch at the start ({filled:.0%} to {filled + 0.15:.0%})", start, "pages/s"),
        Figure("dispatch in the middle (40% to 60%)", ledger.rate(0.4, 0.6), "pages/s"),
        Figure("dispatch at the end (85% to 100%)", end, "pages/s"),
        Figure("slowest look for due pages", max(float(str(seen["find_ms"])) for seen in observations), "ms"),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.million_pages", description=__doc__)
    options.add_argument("--pages", type=int, default=PAGES, help=f"in shops of {PAGES_PER_SHOP}")
    return options


def main() -> bool:
    """Run as the command line says."""
    return measure(parser().parse_args())


if __name__ == "__main__":
    sys.exit(not main())
