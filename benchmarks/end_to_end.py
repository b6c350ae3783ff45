"""Pages per second from submission to the last verdict, against a plain script on the same servers in the same run."""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import psutil

from benchmarks.crawls import crawl_all
from benchmarks.figures import Figure, report
from benchmarks.rig import ROOT, Rig, cpu_by_role, end, rig, work_done
from tests.simulator.process import SimulatorProcess

NAME = "end_to_end"
LEAST_RATIO = 0.5
WORKERS = 2
CONCURRENCY = 100
REPEATS = 3
# The script keeps no history: all that it knows of an item fits into one row.
ONE_TABLE = """
ALTER TABLE item ADD gmv_30d numeric(20, 6), ADD gmv_90d numeric(20, 6), ADD sold_30d bigint, ADD sold_90d bigint,
    ADD orders_30d bigint, ADD rank_score numeric(20, 6), ADD content_hash bigint, ADD last_seen timestamptz
"""


@dataclass(frozen=True)
class Run:
    """One run: pages per second, items in the table, CPU milliseconds per page by role."""

    rate: float
    pages: int
    items: int
    cpu: Mapping[str, float]
    work: Mapping[str, float]
    """Transactions and Redis commands per page."""


def ours(bench: Rig, simulator: SimulatorProcess, name: str, concurrency: int) -> Run:
    """A crawl with two workers and a producer, everything on: late acks, archive, task events."""
    database = bench.fresh(name)
    environment = bench.environment(
        database,
        tmapi_base_url=simulator.url,
        task_events="always",
        concurrency=concurrency,
        tmapi_concurrency_start=WORKERS * concurrency,
        tmapi_concurrency_max=WORKERS * concurrency,
    )
    with bench.fleet(environment, WORKERS) as processes:
        roles = processes | bench.servers() | {"simulator": [psutil.Process(simulator.pid)]}
        before, begun = cpu_by_role(roles), work_done(bench, database)
        crawled = asyncio.run(crawl_all(database, simulator))
        used = _per_page(before, cpu_by_role(roles), crawled.pages, 1000)
        work = _per_page(begun, work_done(bench, database), crawled.pages, 1)
    return Run(crawled.rate, crawled.pages, crawled.items, used, work)


def plain(bench: Rig, simulator: SimulatorProcess, name: str, parts: int) -> Run:
    """The plain script on table `item`, in one process or shared out among several."""
    database = bench.fresh(name)
    bench.postgres.execute(ONE_TABLE, database=name)
    shops = simulator.control("GET", "shops")
    roles = bench.servers() | {"simulator": [psutil.Process(simulator.pid)]}
    children = [_script(simulator.url, database, part, parts) for part in range(parts)]
    try:
        for child in children:
            _tell(child, json.dumps(shops))
            _answer(child)
        _add_shops(bench, name, shops)
        before, started = cpu_by_role(roles), time.perf_counter()
        for child in children:
            _tell(child, "go")
        results = [json.loads(_answer(child)) for child in children]
        seconds = time.perf_counter() - started
        pages = sum(result["pages"] for result in results)
        used = _per_page(before, cpu_by_role(roles), pages, 1000)
    finally:
        for child in children:
            end(child)
    used["script"] = sum(result["cpu"] for result in results) * 1000 / pages
    items = int(bench.postgres.execute("SELECT count(*) FROM item", database=name))
    return Run(pages / seconds, pages, items, used, {})


def _script(url: str, database: str, part: int, parts: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.plain_script", "--url", url, "--database", database]
    command += ["--part", str(part), "--parts", str(parts)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _tell(child: subprocess.Popen[bytes], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line.encode() + b"\n")
    child.stdin.flush()


def _answer(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError("the plain script failed")
    return line


def _add_shops(bench: Rig, name: str, shops: Iterable[str]) -> None:
    rows = json.dumps(list(shops)).replace("'", "''")
    columns = "INSERT INTO shop (source, key, created_at) SELECT 'tmapi', key, now()"
    sql = f"{columns} FROM json_array_elements_text('{rows}') WITH ORDINALITY AS k(key, n) ORDER BY n"
    bench.postgres.execute(sql, database=name)


def _per_page(before: Mapping[str, float], after: Mapping[str, float], pages: int, scale: int) -> dict[str, float]:
    return {name: (after[name] - before[name]) * scale / pages for name in before}


def measure(options: argparse.Namespace) -> bool:
    """Alternate between the two, take medians, print and keep the figures; returns whether the limit was kept."""
    simulator = SimulatorProcess(shops=options.shops, warm=True, cache_mb=150)
    with simulator, rig(durable=options.durable) as bench:
        wanted = sum(simulator.control("GET", "shops?sizes").values())
        trials = {parts: plain(bench, simulator, f"try_{parts}", parts) for parts in (1, 2)}
        parts = max(trials, key=lambda count: trials[count].rate)
        runs: dict[str, list[Run]] = defaultdict(list)
        for number in range(options.repeats):
            runs["plain"].append(plain(bench, simulator, f"plain_{number}", parts))
            runs["ours"].append(ours(bench, simulator, f"ours_{number}", options.concurrency))
            print(f"  plain {runs['plain'][-1].rate:7.0f}   ours {runs['ours'][-1].rate:7.0f} pages/s", flush=True)
    for run in (*runs["plain"], *runs["ours"]):
        if run.items != wanted:
            raise RuntimeError(f"{run.items} items stored instead of {wanted}: the figures mean nothing")
    return report(NAME + ("_durable" if options.durable else ""), figures(runs, parts), {"shops": options.shops})


def figures(runs: Mapping[str, list[Run]], parts: int) -> list[Figure]:
    """Medians of the runs; the ratio is the median of the ratios of neighbouring runs."""
    ratios = [a.rate / b.rate for a, b in zip(runs["ours"], runs["plain"], strict=True)]
    return [
        Figure("ratio of pages/s, ours to plain script", statistics.median(ratios), "", LEAST_RATIO),
        Figure("ours", statistics.median(run.rate for run in runs["ours"]), "pages/s"),
        Figure(f"plain script, {parts} process(es)", statistics.median(run.rate for run in runs["plain"]), "pages/s"),
        *(figure for kind, group in runs.items() for figure in _costs(kind, group)),
    ]


def _costs(kind: str, group: Sequence[Run]) -> list[Figure]:
    cpu = {role: statistics.median(run.cpu[role] for run in group) for role in group[0].cpu}
    work = {name: statistics.median(run.work[name] for run in group) for name in group[0].work}
    return [
        *(Figure(f"CPU of {role}, {kind}", value, "ms/page") for role, value in cpu.items()),
        *(Figure(f"{name}, {kind}", value, "per page") for name, value in work.items()),
    ]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.end_to_end", description=__doc__)
    options.add_argument("--shops", type=int, default=1000, help="five pages each on average")
    options.add_argument("--repeats", type=int, default=REPEATS)
    options.add_argument("--concurrency", type=int, default=CONCURRENCY, help="pages in flight per worker process")
    options.add_argument("--durable", action="store_true", help="PostgreSQL with fsync, as in production")
    return options


def main() -> bool:
    """Run as the command line says."""
    return measure(parser().parse_args())


if __name__ == "__main__":
    sys.exit(not main())
