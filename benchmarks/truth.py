"""What the store tells of 200 shops that move while they are read, ten times over, against what could be observed."""

import argparse
import asyncio
import sys
import time
from collections import Counter

import sqlalchemy as sa

from benchmarks.figures import Figure, report
from benchmarks.rig import TOKEN, Rig, rig
from models.database import create_engine
from models.settings import async_url
from models.tables import shop_crawl
from tests.rounds import crawl_round, requests_for, set_in_motion
from tests.simulator.process import SimulatorProcess
from tests.truth import Account
from tests.witness import Witness, witness

NAME = "truth"
SHOPS = 200
CRAWLS = 10
SHARE = 0.01
GONE_AFTER = 2
WORKERS = 2
LONGEST = 900.0


def crawl_often(
    bench: Rig, simulator: SimulatorProcess, database: str, crawls: int, gone_after: int = GONE_AFTER
) -> None:
    """Crawl every shop so many times, one crawl after the other, and print what each came to."""
    environment = bench.environment(database, tmapi_base_url=simulator.url, gone_after=gone_after)
    requests = requests_for(simulator)
    calls = simulator.calls()["total"]
    with bench.fleet(environment, WORKERS):
        for _ in range(crawls):
            started = time.perf_counter()
            number = asyncio.run(crawl_round(database, requests, within=LONGEST))
            seconds, made = time.perf_counter() - started, simulator.calls()["total"]
            print(
                f"  crawl {number:>2}: {_shown(verdicts(database, number))}; {made - calls} calls, {seconds:.1f} s",
                flush=True,
            )
            calls = made


def verdicts(database: str, number: int) -> Counter[str]:
    """Shops of a crawl by verdict."""
    query = sa.select(shop_crawl.c.verdict, sa.func.count()).where(shop_crawl.c.crawl_id == number)

    async def read() -> Counter[str]:
        engine = create_engine(async_url(database))
        try:
            async with engine.connect() as connection:
                rows = await connection.execute(query.group_by(shop_crawl.c.verdict))
                return Counter({row[0]: row[1] for row in rows})
        finally:
            await engine.dispose()

    return asyncio.run(read())


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


def figures(seen: Witness) -> list[Figure]:
    """Events expected, found, missed, false and misdated by kind; then what else must be right or is worth knowing."""
    found = seen.accounts
    overlooked, late = seen.overlooked, seen.prompt
    complete = sum(verdict == "complete" for verdict in seen.story.verdicts.values())
    return [
        *(figure for kind, account in found.items() for figure in _of_kind(kind, account)),
        Figure("answers lost or kept twice", len(seen.lost), "", 0, at_least=False),
        Figure("items with a wrong price history", len(seen.wrong_histories), "", 0, at_least=False),
        Figure("items wrongly counted as gone, or not", len(seen.wrong_states), "", 0, at_least=False),
        Figure("gone: share found by the first crawl that could", 1 - len(late.missed) / max(1, late.expected), ""),
        Figure("gone that came back unseen by then", len(seen.unlucky), ""),
        Figure("share of crawls of a shop that are complete", complete / len(seen.story.verdicts), ""),
        Figure("complete crawls of a shop that overlooked", len(overlooked), ""),
        Figure("items overlooked in them", sum(overlooked.values()), ""),
    ]


def _of_kind(kind: str, account: Account) -> list[Figure]:
    return [
        Figure(f"{kind}: expected", account.expected, "events"),
        Figure(f"{kind}: found", account.found, "events"),
        Figure(f"{kind}: missed", len(account.missed), "events", 0, at_least=False),
        Figure(f"{kind}: false", len(account.false), "events", 0, at_least=False),
        Figure(f"{kind}: misdated", len(account.misdated), "events", 0, at_least=False),
    ]


def measure(options: argparse.Namespace) -> bool:
    """Crawl, compare, print and keep the figures; returns whether everything was right."""
    switches = {"journal": True}
    with (
        SimulatorProcess(shops=options.shops, seed=options.seed, token=TOKEN, switches=switches) as simulator,
        rig() as bench,
    ):
        set_in_motion(simulator, options.share)
        database = bench.fresh(NAME)
        crawl_often(bench, simulator, database, options.crawls, options.gone_after)
        seen = asyncio.run(witness(database, simulator, gone_after=options.gone_after))
    for kind, account in seen.accounts.items():
        for fault in ("missed", "false", "misdated"):
            for event in getattr(account, fault)[: options.show]:
                print(f"  {kind} {fault}: {event}")
    return report(NAME, figures(seen), vars(options))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.truth", description=__doc__)
    options.add_argument("--shops", type=int, default=SHOPS)
    options.add_argument("--crawls", type=int, default=CRAWLS)
    options.add_argument("--share", type=float, default=SHARE, help="of a shop's items that move after each page")
    options.add_argument("--gone-after", type=int, default=GONE_AFTER, help="complete crawls; 1: each proof counts")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--show", type=int, default=3, metavar="N", help="print so many wrong events of each kind")
    return options


if __name__ == "__main__":
    sys.exit(not measure(parser().parse_args()))
