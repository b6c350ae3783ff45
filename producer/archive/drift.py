"""`shopcrawl drift`: how the answers of an API have changed, by the archived bodies of two periods."""

import json as lenient
import sys
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from models.durations import parse_moment
from models.errors import UsageError
from models.redact import redact, redact_value
from models.settings import Settings, load_settings
from producer import run
from producer.archive.bodies import Scope, count_bodies, latest_crawl, read_bodies, started
from producer.archive.shapes import LONGEST_SAMPLE, Difference, Shape, differences
from producer.console.progress_bar import progress
from producer.console.text import plain

DECODER = msgspec.json.Decoder()


class SourceDrift(msgspec.Struct, frozen=True):
    """What changed in one source's answers; `before` and `after` are answers read, `left_out` values not looked at."""

    source: str
    before: int
    after: int
    unreadable: int
    left_out: int
    differences: list[Difference]


class Period:
    """The shapes of one period's answers, by source."""

    def __init__(self, settings: Settings) -> None:
        self.shapes: dict[str, Shape] = {}
        self.unreadable: dict[str, int] = {}
        self._secrets = settings.secrets

    def add(self, source: str, content: bytes) -> None:
        """Count one answer; one that is no JSON is only counted."""
        shape = self.shapes.setdefault(source, Shape(self._sample))
        try:
            shape.add(parsed(content))
        except (ValueError, RecursionError):
            self.unreadable[source] = self.unreadable.get(source, 0) + 1

    def _sample(self, value: Any) -> str:
        """A value on one short line, secrets masked."""
        if isinstance(value, list | dict):
            value = redact_value(value, self._secrets)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        return plain(redact(text, self._secrets), LONGEST_SAMPLE)


def parsed(content: bytes) -> Any:
    """An answer's JSON, read as leniently as adapters read it. Raises ValueError for anything else."""
    try:
        return DECODER.decode(content)
    except msgspec.DecodeError:
        return lenient.loads(content, strict=False)


def compared(before: Period, after: Period) -> list[SourceDrift]:
    """What changed, for each source that has answers in both periods."""
    return [
        SourceDrift(
            source,
            earlier.answers,
            later.answers,
            before.unreadable.get(source, 0) + after.unreadable.get(source, 0),
            earlier.left_out + later.left_out,
            list(differences(earlier.root, later.root)),
        )
        for source, later in sorted(after.shapes.items())
        if (earlier := before.shapes.get(source)) is not None
    ]


def drift(
    since: Annotated[
        str | None, typer.Option(help="Look at answers fetched so long ago at most (7d), or since a time (UTC).")
    ] = None,
    crawl: Annotated[
        int | None, typer.Option(help="Look at this crawl's answers; default: the newest crawl's.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Compare with this earlier crawl, or with what is no older than this.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON array to standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Show fields that an API never sent before, that it sends no more, and that have changed their type."""
    settings = load_settings()
    if since is not None and crawl is not None:
        raise UsageError("--since and --crawl exclude each other")
    found = run.run_until_signalled(_drift(settings, since, crawl, against, quiet=quiet or json))
    if json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    from producer.console.drift import print_drift  # noqa: PLC0415 (only a terminal needs it)

    print_drift(Console(), found)


async def _drift(
    settings: Settings, since: str | None, crawl: int | None, against: str | None, *, quiet: bool
) -> list[SourceDrift]:
    async with run.database(settings) as (engine, clock):
        now = clock.now()
        if since is not None:
            later = Scope(since=parse_moment(since, now))
        else:
            number = crawl if crawl is not None else await latest_crawl(engine)
            later = Scope(crawl_id=number, since=await started(engine, number))
        if against is not None and against.isdigit():
            earlier = Scope(crawl_id=int(against), since=await started(engine, int(against)))
        else:
            earlier = Scope(since=None if against is None else parse_moment(against, now), until=later.since)
        total = await count_bodies(engine, earlier) + await count_bodies(engine, later)
        with progress("answers", total, quiet=quiet) as advance:
            before = await read_period(engine, earlier, settings, advance)
            after = await read_period(engine, later, settings, advance)
    return compared(before, after)


async def read_period(
    engine: AsyncEngine, scope: Scope, settings: Settings, advance: Callable[[int], None] = lambda _number: None
) -> Period:
    """The shapes of the answers that were good; error pages have shapes of their own."""
    period = Period(settings)
    async for bodies in read_bodies(engine, scope):
        for body in bodies:
            if body.state == "done":
                period.add(body.task.source, body.content)
        advance(len(bodies))
    return period
