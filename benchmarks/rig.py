"""What every benchmark stands on: real servers, our processes, their CPU time and memory."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from redis.asyncio import Redis

from models import fleet
from models.database import create_engine, upgrade
from models.settings import async_url
from tests.servers import PostgresServer, RedisServer, spawn, wait_until

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = "shopcrawl_template"
TOKEN = "benchmark-token"
# Not the installed script: started this way, what is measured is the code of this checkout.
PRODUCER = [sys.executable, "-c", "from producer.cli import main; main()", "producer"]


class DurablePostgres(PostgresServer):
    """A PostgreSQL whose commits wait for the disk, as in production; the tests' one does not."""

    def _command(self) -> list[str]:
        return [*super()._command(), "-c", "fsync=on", "-c", "full_page_writes=on"]


@dataclass(frozen=True)
class Rig:
    """PostgreSQL and Redis of a benchmark, and a folder for logs."""

    postgres: PostgresServer
    redis: RedisServer
    folder: Path

    def fresh(self, name: str) -> str:
        """Empty Redis, and return the URL of a new empty database with that name."""
        with self.redis.client() as client:
            client.flushall()
            client.config_resetstat()
        return self.postgres.create_database(name, template=TEMPLATE)

    def environment(self, database: str, **settings: object) -> dict[str, str]:
        """The environment for our processes: these settings on top of the servers' addresses."""
        given = {
            "database_url": database,
            "redis_url": self.redis.url,
            "data_dir": self.folder,
            "tmapi_tokens": TOKEN,
            "log_level": "WARNING",
            "allow_root": 1,
            **settings,
        }
        ours = {f"SHOPCRAWL_{name.upper()}": str(value) for name, value in given.items()}
        others = {name: value for name, value in os.environ.items() if not name.startswith("SHOPCRAWL_")}
        return others | ours

    @contextmanager
    def process(self, name: str, command: Sequence[str], environment: Mapping[str, str]) -> Iterator[psutil.Process]:
        """Run a process of ours around the body; its output goes to NAME.log. Raises RuntimeError if it ended early."""
        words = [f"{key}={value}" for key, value in environment.items()]
        with (self.folder / f"{name}.log").open("ab") as log:
            child = spawn(
                ["/usr/bin/env", "-i", *words, *command],
                cwd=ROOT, log=log.fileno(), death_signal=signal.SIGKILL,
            )  # fmt: skip
        try:
            yield psutil.Process(child.pid)
            if child.poll() is not None:
                raise RuntimeError(f"{name} ended with {child.returncode}: {self.tail(name)}")
        finally:
            end(child)

    @contextmanager
    def fleet(self, environment: Mapping[str, str], workers: int) -> Iterator[dict[str, list[psutil.Process]]]:
        """Worker processes and one producer around the body, by role; the workers are up when the body starts."""
        with ExitStack() as stack:
            hands = [
                stack.enter_context(self.process(f"worker-{n}", worker_command(n), environment)) for n in range(workers)
            ]
            self.await_workers(workers)
            known = self.connections()
            brain = stack.enter_context(self.process("producer", PRODUCER, environment))
            wait_until(lambda: self.connections() > known, what=f"the producer, see {self.folder}")
            yield {"worker": hands, "producer": [brain]}

    def connections(self) -> int:
        """How many connections our processes hold to PostgreSQL."""
        return int(self.postgres.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shopcrawl'"))

    def await_workers(self, count: int) -> None:
        """Wait until so many workers have sent a heartbeat."""

        async def living() -> int:
            async with Redis.from_url(self.redis.url) as client:
                return len(await fleet.live_workers(client))

        wait_until(lambda: asyncio.run(living()) >= count, what=f"{count} workers, see {self.folder}")

    def servers(self) -> dict[str, list[psutil.Process]]:
        """The server processes by role."""
        return {"postgres": [psutil.Process(self.postgres.pid)], "redis": [psutil.Process(self.redis.pid)]}

    def tail(self, name: str) -> str:
        """The end of a process's log."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]


@contextmanager
def rig(*, durable: bool = False) -> Iterator[Rig]:
    """Start PostgreSQL (with a template at the newest schema) and Redis (append-only file on) for a benchmark."""
    with tempfile.TemporaryDirectory(prefix="shopcrawl-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        (folder / "redis").mkdir()
        kind = DurablePostgres if durable else PostgresServer
        postgres = stack.enter_context(kind(folder))
        redis = stack.enter_context(EverySecondRedis(folder / "redis", aof=True))
        asyncio.run(_upgrade(postgres.create_database(TEMPLATE)))
        yield Rig(postgres, redis, folder)


class EverySecondRedis(RedisServer):
    """A Redis whose append-only file reaches the disk every second, as recommended for production."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--appendfsync", "everysec"]


async def _upgrade(url: str) -> None:
    engine = create_engine(async_url(url))
    try:
        await upgrade(engine)
    finally:
        await engine.dispose()


def worker_command(number: int) -> list[str]:
    """The arguments that start one worker process, events and remote control included."""
    return [sys.executable, "-m", "worker", f"--hostname=worker-{number}@%h", "--loglevel=WARNING"]


def end(child: subprocess.Popen[bytes]) -> None:
    """Ask a child to end, kill it if that takes long, and wait until it is gone."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def cpu_seconds(process: psutil.Process) -> float:
    """CPU time of a process, its living descendants, and the children it has waited for."""
    times = process.cpu_times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        try:
            own = child.cpu_times()
        except psutil.NoSuchProcess:  # ended meanwhile: its parent has it among its waited-for children
            continue
        total += own.user + own.system
    return float(total)


def work_done(bench: Rig, database: str) -> dict[str, int]:
    """Transactions committed in a database and commands carried out by Redis so far."""
    name = database.rpartition("/")[2]
    commits = f"SELECT xact_commit FROM pg_stat_database WHERE datname = '{name}'"
    with bench.redis.client() as client:
        commands = client.info("stats")["total_commands_processed"]
    return {"transactions": int(bench.postgres.execute(commits)), "Redis commands": int(commands)}


def cpu_by_role(roles: Mapping[str, Sequence[psutil.Process]]) -> dict[str, float]:
    """CPU seconds so far, summed over the processes of each role."""
    return {role: sum(map(cpu_seconds, processes)) for role, processes in roles.items()}


def peak_megabytes(process: psutil.Process) -> float:
    """The largest resident set a process ever had, as the kernel counts it."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) / 1024
