"""`shopcrawl export`: items, their versions, their sales and the verdicts of crawls as files, streamed and sorted."""

import asyncio
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, BinaryIO, Literal

import msgspec
import typer
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from models.database import unavailable
from models.durations import parse_moment
from models.errors import UsageError
from models.settings import Settings, load_settings
from producer import run
from producer.exports.batches import Batches, Shop, shops_named
from producer.exports.datasets import DATASETS, Dataset
from producer.exports.formats import Fields, write_rows
from producer.exports.where import Condition, parse_condition

app = typer.Typer(no_args_is_help=True, help="Stored rows as files.")

Format = Annotated[Literal["jsonl", "csv", "parquet"], typer.Option(help="File format.")]
Output = Annotated[str, typer.Option("--output", "-o", help="File; - is standard output.")]
Shops = Annotated[list[str] | None, typer.Option(help="Only this shop (repeatable).")]
Columns = Annotated[str | None, typer.Option(help="Columns, comma-separated; default: all.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Only rows like 'price>=10' (repeatable): = != < <= > >= ~ (contains), is empty, is not empty."),
]


class Selection(msgspec.Struct, frozen=True):
    """What of a data set is wanted, as the command line names it; None: all.

    `since` is a time or a duration before now, `where` holds conditions that must all be met.
    """

    shops: Sequence[str] | None = None
    since: str | None = None
    columns: Sequence[str] | None = None
    where: Sequence[str] = ()


class Export:
    """A selection of a data set that has been found to be possible."""

    def __init__(self, fields: Fields, batches: Batches, shops: Sequence[Shop] | None) -> None:
        self._fields, self._batches, self._shops = fields, batches, shops

    @classmethod
    async def prepare(cls, engine: AsyncEngine, dataset: Dataset, selection: Selection, *, now: datetime) -> "Export":
        """Check a selection. Raises UsageError for what it does not know, UnavailableError for the database."""
        fields = _chosen(dataset.fields, selection.columns)
        where = [parse_condition(text, dataset.fields, now) for text in selection.where]
        if selection.since is not None:
            where.append(Condition(dataset.since, ">=", parse_moment(selection.since, now)))
        with _database_errors():
            shops = None if selection.shops is None else await shops_named(engine, selection.shops)
        return cls(fields, Batches(engine, dataset, list(fields), where), shops)

    async def write(self, stream: BinaryIO, format: str) -> int:
        """Write the rows, sorted by source, shop and key, to a stream that stays open; returns how many there were.

        Memory stays flat, and no transaction is open while the stream's reader is slow. Raises as `write_rows` does,
        and UnavailableError.
        """
        with _database_errors():
            return await write_rows(stream, format, self._fields, self._batches.read(self._shops))


@contextmanager
def _database_errors() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError) as error:
        raise unavailable(error) from None


def _chosen(known: Fields, columns: Sequence[str] | None) -> Fields:
    names = tuple(dict.fromkeys(known if columns is None else columns))
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        wrong = f"unknown column {unknown[0][:40]!r}" if unknown else "no column chosen"
        raise UsageError(f"{wrong}; columns: {', '.join(known)}")
    return {name: known[name] for name in names}


def _command(dataset: Dataset) -> Callable[..., None]:
    since_help = f"Only rows with `{dataset.since}` at or after this time (UTC), or so long ago at most, as 24h."

    def export(
        format: Format = "jsonl",
        output: Output = "-",
        shop: Shops = None,
        since: Annotated[str | None, typer.Option(help=since_help)] = None,
        columns: Columns = None,
        where: Where = None,
    ) -> None:
        chosen = [name.strip() for name in columns.split(",")] if columns else None
        selection = Selection(shop, since, chosen, where or ())
        rows = run.run_until_signalled(_export(load_settings(), dataset, selection, format, output))
        if output != "-":
            sys.stderr.write(f"{rows} {dataset.name} written to {output}\n")

    return export


async def _export(settings: Settings, dataset: Dataset, selection: Selection, format: str, output: str) -> int:
    async with run.database(settings) as (engine, clock):
        # Checked before the file is opened: a mistyped name leaves an older export as it was.
        export = await Export.prepare(engine, dataset, selection, now=clock.now())
        if output == "-":
            return await export.write(sys.stdout.buffer, format)
        try:
            stream = await asyncio.to_thread(open, output, "wb")
        except OSError as error:
            raise UsageError(f"{output}: {error.strerror}") from None
        with stream:
            return await export.write(stream, format)


for _dataset in DATASETS.values():
    app.command(_dataset.name, help=f"{_dataset.help} Money is decimal text, times are UTC.")(_command(_dataset))
