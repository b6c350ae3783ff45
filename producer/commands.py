"""The smaller commands: database, archive, doctor, and the processes that are started for the user."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from models.archive import prune_bodies
from models.broker import redis_url
from models.durations import parse_duration
from models.errors import UsageError
from models.logs import configure_logging
from models.settings import Settings, load_settings
from producer import run
from producer.hosting.local import PACKAGE_ROOT, celery_command, environment
from producer.services import bring_up_to_date, make_folder, open_engine

PRUNE_BATCH = 5_000

database = typer.Typer(no_args_is_help=True, help="The database's schema.")
archive = typer.Typer(no_args_is_help=True, help="The archive of page bodies.")


@database.command("upgrade")
def upgrade_database() -> None:
    """Create the tables, or bring them to the newest version."""
    settings = load_settings()
    make_folder(settings.data_dir)
    version = run.run_until_signalled(_upgrade(settings))
    sys.stdout.write(f"the database has schema version {version}\n")


async def _upgrade(settings: Settings) -> str:
    engine = open_engine(settings)
    try:
        return await bring_up_to_date(engine)
    finally:
        await engine.dispose()


@archive.command("prune")
def prune(older_than: Annotated[str, typer.Option(help="Age of the bodies to drop, as 24h or 30d.")]) -> None:
    """Drop archived page bodies older than an age; items and the ledger stay."""
    dropped = run.run_until_signalled(_prune(load_settings(), older_than))
    sys.stdout.write(f"{dropped} page bodies dropped\n")


async def _prune(settings: Settings, older_than: str) -> int:
    """Delete in batches, so that a crawl that is running never waits long for a lock."""
    age, dropped = parse_duration(older_than), 0
    async with run.database(settings) as (engine, clock):
        before = clock.now() - age
        while True:
            async with engine.begin() as connection:
                count = await prune_bodies(connection, before, batch=PRUNE_BATCH)
            dropped += count
            if count < PRUNE_BATCH:
                return dropped


def doctor() -> None:
    """Check database, Redis, clock, token and address, one line each with the cure."""
    from producer.console.checks import print_checks  # noqa: PLC0415 (needs the HTTP client, as no other command does)
    from producer.doctor import run_checks  # noqa: PLC0415

    checks = run.run_until_signalled(run_checks(load_settings()))
    print_checks(Console(), checks)
    raise typer.Exit(2 if any(check.ok is False for check in checks) else 0)


def worker(context: typer.Context) -> None:
    """Run one worker process; what follows is passed on to `celery worker`."""
    settings = load_settings()
    refuse_root(settings)
    redis_url(settings)
    become([*celery_command(f"worker-{os.getpid()}", settings.log_level), *context.args], environment(settings))


def flower() -> None:
    """Run Flower, the Celery monitor; off loopback it needs a user and a password."""
    settings = load_settings()
    refuse_root(settings)
    redis_url(settings)
    from producer.flower import flower_command  # noqa: PLC0415 (takes a moment to import)

    command, variables = flower_command(settings)
    become(command, {**environment(settings), **variables})


def demo() -> None:
    """Crawl 1,012 simulated shops with faults injected, and check the result against the simulator's truth."""
    from producer.demo import run_demo  # noqa: PLC0415 (needs the simulator, which only a checkout has)

    settings = load_settings()
    configure_logging(settings, log_file=settings.log_file)
    raise typer.Exit(run_demo(Console(stderr=True)))


def refuse_root(settings: Settings) -> None:
    """Raise UsageError for a service that runs as root without need."""
    if os.geteuid() == 0 and not settings.allow_root:
        raise UsageError("refusing to run this service as root: use another user, or set SHOPCRAWL_ALLOW_ROOT=1")


def become(command: Sequence[str], variables: Mapping[str, str]) -> NoReturn:
    """Replace this process by a command, started where no stray folder can shadow our packages."""
    os.environ.update(variables)
    os.chdir(PACKAGE_ROOT)
    os.execv(command[0], list(command))  # noqa: S606 (our own interpreter)
