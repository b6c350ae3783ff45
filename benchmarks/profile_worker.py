"""Where the time of a worker and of the producer goes: py-spy samples both during one crawl, and we add them up.

py-spy is no dependency of the project: `pip install py-spy` first. The samples are kept as collapsed stacks, which
https://www.speedscope.app shows as a flame graph.
"""

import argparse
import asyncio
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil

from benchmarks.crawls import crawl_all
from benchmarks.end_to_end import CONCURRENCY, WORKERS
from benchmarks.figures import RESULTS
from benchmarks.rig import Rig, cpu_by_role, rig
from tests.simulator.process import SimulatorProcess

SAMPLES_PER_SECOND = 200
_FRAME = re.compile(r"^(?P<name>.*?) \((?P<file>[^()]*?)(?::\d+)?\)$")


def record(process: psutil.Process, output: Path, *, gil: bool) -> subprocess.Popen[bytes]:
    """Begin to sample the threads of a process that hold the CPU; the stacks are written when it is interrupted."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        raise SystemExit("py-spy is not installed: pip install py-spy")
    command = [spy, "record", "--format", "raw", "--rate", str(SAMPLES_PER_SECOND), "--output", str(output)]
    return subprocess.Popen(
        [*command, "--nonblocking", "--pid", str(process.pid), "--threads", *(["--gil"] if gil else [])],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def summary(stacks: Path, top: int) -> str:
    """The functions in which most samples lie, with those they called (all) and without (own), in percent."""
    whole: Counter[str] = Counter()
    own: Counter[str] = Counter()
    total = 0
    for line in stacks.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [_readable(frame) for frame in stack.split(";")]
        total += int(samples)
        own[frames[-1]] += int(samples)
        for frame in set(frames):
            whole[frame] += int(samples)
    lines = [f"{total} samples of {SAMPLES_PER_SECOND}/s", "  all %  own %  function"]
    for frame, count in whole.most_common(top):
        lines.append(f"  {100 * count / total:5.1f}  {100 * own[frame] / total:5.1f}  {frame}")
    lines.append("by own time:")
    for frame, count in own.most_common(top // 2):
        lines.append(f"  {100 * whole[frame] / total:5.1f}  {100 * count / total:5.1f}  {frame}")
    return "\n".join(lines)


def _readable(frame: str) -> str:
    found = _FRAME.match(frame)
    return f"{found['name']}  {'/'.join(found['file'].split('/')[-3:])}" if found else frame


def profile(bench: Rig, simulator: SimulatorProcess, concurrency: int, top: int, *, gil: bool) -> str:
    """Crawl once under py-spy; returns both summaries and the CPU per page."""
    database = bench.fresh("profiled")
    limit = WORKERS * concurrency
    environment = bench.environment(
        database,
        tmapi_base_url=simulator.url,
        task_events="always",
        concurrency=concurrency,
        tmapi_concurrency_start=limit,
        tmapi_concurrency_max=limit,
    )
    RESULTS.mkdir(exist_ok=True)
    with bench.fleet(environment, WORKERS) as roles:
        targets = {role: RESULTS / f"profile_{role}.txt" for role in roles}
        spies = [record(roles[role][0], output, gil=gil) for role, output in targets.items()]
        before = cpu_by_role(roles)
        crawled = asyncio.run(crawl_all(database, simulator))
        threads = _thread_seconds(roles["worker"][0])
        used = {role: (seconds - before[role]) * 1000 / crawled.pages for role, seconds in cpu_by_role(roles).items()}
        for spy in spies:
            spy.send_signal(2)
            spy.wait(60)
    text = f"{crawled.pages} pages, {crawled.rate:.0f} pages/s under the profiler\n"
    text += f"CPU seconds of the worker's threads: {threads}\n"
    for role, output in targets.items():
        text += f"\n{role}: {used[role]:.2f} ms CPU per page; {output}\n{summary(output, top)}\n"
    return text


def _thread_seconds(process: psutil.Process) -> str:
    """The first thread is Celery's, the busiest other one runs the asyncio loop."""
    times = [round(thread.user_time + thread.system_time, 1) for thread in process.threads()]
    return ", ".join(str(seconds) for seconds in times if seconds)


def main() -> None:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_worker", description=__doc__)
    parser.add_argument("--shops", type=int, default=600)
    parser.add_argument("--concurrency", type=int, default=CONCURRENCY)
    parser.add_argument("--top", type=int, default=60)
    parser.add_argument("--gil", action="store_true", help="only threads that hold the interpreter's lock: no waiting")
    options = parser.parse_args()
    simulator = SimulatorProcess(shops=options.shops, warm=True, cache_mb=150)
    with simulator, rig() as bench:
        print(profile(bench, simulator, options.concurrency, options.top, gil=options.gil))


if __name__ == "__main__":
    main()
