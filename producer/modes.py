"""The options by which commands choose a crawl's mode."""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import typer

from models.crawls import ShopRequest
from models.durations import parse_duration
from models.errors import UsageError
from models.modes import REFRESH, WHOLE, Mode
from models.source import source_named

ModeName = Annotated[
    Literal["full", "new", "refresh"] | None,
    typer.Option(help="new: only what was added or changed; refresh: shops whose data is older than --older-than."),
]


def chosen_mode(name: str | None, older_than: str | None, since: str | None) -> Mode:
    """The mode that these options ask for. Raises UsageError for options that do not go together."""
    if name is not None and since is not None:
        raise UsageError("--since leaves nothing to --mode: give one of them")
    if (name == REFRESH) != (older_than is not None):
        raise UsageError("--mode refresh and --older-than go together, as in --mode refresh --older-than 7d")
    if older_than is not None:
        return Mode(REFRESH, parse_duration(older_than))
    return WHOLE if name is None else Mode(name)


def whole(requests: Sequence[ShopRequest]) -> list[ShopRequest]:
    """The same shops with options that show all there is: what a mode begins with."""
    return [
        msgspec.structs.replace(request, options=source_named(request.source).whole(request.options))
        for request in requests
    ]
