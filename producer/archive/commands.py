"""`shopcrawl replay`: reads the archive again with today's decoders, without a call."""

import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from models.durations import parse_moment
from models.errors import UsageError
from models.settings import Settings, load_settings
from producer import run
from producer.archive.bodies import Scope, count_bodies, started
from producer.archive.replay import Replay, Replayed
from producer.console.progress_bar import progress
from producer.console.replay import print_replayed
from producer.exports.batches import shops_named

UNREADABLE = 3


def replay(
    crawl: Annotated[int | None, typer.Option(help="Only pages of this crawl.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only pages fetched so long ago at most, as 24h or 7d, or since a time (UTC).")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All pages in the archive.")] = False,
    shop: Annotated[list[str] | None, typer.Option(help="Only pages of this shop (repeatable).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing, only say what would change.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Read archived pages again with today's decoders into the store: no call, and history keeps its times."""
    if [crawl is not None, since is not None, everything].count(True) != 1:
        raise UsageError("say which pages: one of --crawl, --since and --all")
    settings = load_settings()
    found = run.run_until_signalled(_replay(settings, crawl, since, shop, dry_run=dry_run, quiet=quiet or json))
    if json:
        told = {"dry_run": dry_run, "differences": found.differences, **msgspec.structs.asdict(found)}
        sys.stdout.write(msgspec.json.encode(told).decode() + "\n")
    else:
        print_replayed(Console(), found, dry_run=dry_run)
    raise typer.Exit(UNREADABLE if found.failed else 0)


async def _replay(
    settings: Settings,
    crawl_id: int | None,
    since: str | None,
    shops: Sequence[str] | None,
    *,
    dry_run: bool,
    quiet: bool,
) -> Replayed:
    async with run.database(settings) as (engine, clock):
        start = None if since is None else parse_moment(since, clock.now())
        if crawl_id is not None:
            start = await started(engine, crawl_id)
        ids = None if shops is None else tuple(found.id for found in await shops_named(engine, shops))
        scope = Scope(crawl_id=crawl_id, shops=ids, since=start)
        with progress("pages", await count_bodies(engine, scope), quiet=quiet) as advance:
            return await Replay(engine, scope, settings, dry_run=dry_run).run(advance)
