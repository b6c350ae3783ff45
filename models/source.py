"""What a source is: the protocol every API adapter fulfils, the values it exchanges, and the registry that finds it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

import msgspec

from models.billing import Prices
from models.errors import UsageError
from models.messages import PageTask
from models.settings import Settings

ENTRY_POINT_GROUP = "shopcrawl.sources"


class Credential(msgspec.Struct, frozen=True):
    """A secret to call with; `name` is a short fingerprint that is safe to show and store."""

    name: str
    secret: str

    def __repr__(self) -> str:
        return f"Credential({self.name})"


class Limits(msgspec.Struct, frozen=True):
    """Bounds of the fleet-wide limiter for one credential.

    `rate` in requests per second and `per_day` in requests, 0 for none; days begin `day_shift` seconds before UTC's.
    """

    rate: float
    start: float
    floor: float
    ceiling: float
    per_day: int = 0
    day_shift: float = 0

    @classmethod
    def of(
        cls,
        *,
        concurrency: tuple[float, float, float, float],
        rate: float,
        per_minute: float,
        per_day: int,
        day_shift: float = 0,
    ) -> "Limits":
        """Bounds as settings give them: concurrency is (start, lowest, highest, fixed), 0 for what is not set.

        A minute's requests are spread evenly, because no sliding minute may have more.
        """
        start, lowest, highest, fixed = concurrency
        lowest, highest = (fixed, fixed) if fixed else (min(lowest, highest), highest)
        rates = [each for each in (rate, per_minute / 60) if each]
        return cls(min(rates, default=0), max(lowest, min(start, highest)), lowest, highest, per_day, day_shift)


class HttpRequest(msgspec.Struct, frozen=True):
    """One HTTP call; `params` go into the query and hold the secret, so this value is never logged."""

    method: str
    url: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None = None

    def __repr__(self) -> str:
        return f"HttpRequest({self.method} {self.url})"


class HttpResponse(msgspec.Struct, frozen=True):
    """One HTTP answer with its decoded (uncompressed) body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One item as stored, for every source; an absent field is None, money is in yuan."""

    item_id: str
    title: str | None = None
    image: str | None = None
    images: list[str] | None = None
    video_id: str | None = None
    category_id: str | None = None
    category_path: list[str] | None = None
    category_name: str | None = None
    price: Decimal | None = None
    drop_ship_price: Decimal | None = None
    wholesale_price: Decimal | None = None
    origin_price: Decimal | None = None
    agent_price: Decimal | None = None
    quantity_begin: int | None = None
    stock: int | None = None
    new_product: bool | None = None
    type: str | None = None
    unit: str | None = None
    status: str | None = None
    outer_id: str | None = None
    props: list[list[str]] | None = None
    created_time: datetime | None = None
    extra: dict[str, Any] | None = None
    # What moves by itself stands last: the rest is cut off before it and stored on its own (models/items.py).
    gmv_30d: Decimal | None = None
    gmv_90d: Decimal | None = None
    sold_30d: int | None = None
    sold_90d: int | None = None
    orders_30d: int | None = None
    rank_score: Decimal | None = None


class FetchedPage(msgspec.Struct):
    """One decoded page: items in the order sent, the total the API claims, the page size it echoes, oddities."""

    items: list[Item]
    total: int | None = None
    page_size: int | None = None
    anomalies: tuple[str, ...] = ()


class WindowRules(msgspec.Struct, frozen=True, kw_only=True):
    """How a listing that is cut into windows of time may be read; see docs/how-it-works.md."""

    reach: int
    """Rows that one listing shows at most: page number times page size never exceeds it."""
    margin: timedelta
    """How long a change may take to show: windows end this long before they are asked for."""
    overlap: timedelta
    """How far an incremental crawl reaches back before the end of the last complete one."""
    earliest: datetime = datetime(2003, 1, 1, tzinfo=UTC)
    """No row is older."""
    turns: int = 3
    """Times that a window is read when it shows fewer items than it claims."""
    rounds: int = 8
    """Windows opened one after the other for what was edited while the last one was read."""


class Source(Protocol):
    """A small pure adapter for one API; it never touches the network, the clock or the database.

    Adapters inherit from it: what stands here with a value is what most of them want.
    """

    name: str
    option_names: tuple[str, ...] = ("page_size", "max_pages")
    """The options that `options` accepts; crawls need at least these two, as whole numbers."""
    filter_names: tuple[str, ...] = ()
    """Those of them that leave out a part of the shop's items."""
    steady_sorts: Mapping[str, int] = {}
    """Values of option `sort` under which items keep their places among the others; -1: in the order of 1 reversed."""
    needs_session: bool = False
    """Each shop is called with a session of its own, besides the credential."""
    sticky_outcomes: tuple[str, ...] = ()
    """Codes of TransientErrors that tend to stay for a while: a shop that hardly answers otherwise is rested."""

    def windows(self, settings: Settings) -> WindowRules | None:  # noqa: ARG002 (for adapters)
        """How to read the listing by windows of time; None: its pages are read one after the other to the end."""
        return None

    def credentials(self, settings: Settings) -> tuple[Credential, ...]:
        """The credentials configured for this source, possibly none."""

    def credential_help(self) -> str:
        """One line that tells a user how to configure a credential."""

    def base_url(self, settings: Settings) -> str:
        """The address that calls go to."""

    def limits(self, settings: Settings) -> Limits:
        """The limiter's bounds for each credential."""

    def prices(self, settings: Settings) -> Prices:  # noqa: ARG002 (for adapters)
        """What its calls cost."""
        return Prices()

    def daily_caps(self, settings: Settings) -> tuple[int | None, Decimal | None]:  # noqa: ARG002 (for adapters)
        """The calls and the money of a day (UTC) that are never exceeded; None: no cap."""
        return None, None

    def check_shop(self, shop: str) -> None:
        """Accept a shop key. Raises UsageError that says what is wrong with it."""

    def options(self, given: Mapping[str, str], settings: Settings) -> dict[str, Any]:
        """Validate the options given for a crawl or a shop and fill in defaults. Raises UsageError."""

    def whole(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of a crawl that shows all there is, and not only what has changed."""
        return dict(options)

    def newest(self, options: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 (for adapters)
        """The options of a crawl of mode `new`, which shows first what was added or changed; None: it has none."""
        return None

    def narrowed(self, options: Mapping[str, Any]) -> dict[str, Any] | None:  # noqa: ARG002 (for adapters)
        """The options with a shorter `fields`, to try after FieldsRefusedError; None if it is short already."""
        return None

    def request(
        self, task: PageTask, credential: Credential, settings: Settings, now: datetime, session: str | None = None
    ) -> HttpRequest:
        """Build the call for one page; `session` is the shop's own, for sources that need one.

        A window of time is in the task's options: `start_modified` (absent: from the beginning) and `end_modified` as
        ISO 8601 UTC text, both inclusive, and perhaps `cid`.
        """

    def decode(self, response: HttpResponse, task: PageTask, now: datetime) -> FetchedPage:
        """Read an answer. Raises a FetchError whose class names the reaction; never any other error."""


@cache
def source_named(name: str) -> Source:
    """The adapter registered under `name` in the entry point group. Raises UsageError if there is none."""
    found = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        raise UsageError(f"unknown source {name[:40]!r}; known sources: {', '.join(sorted(found))}")
    adapter: Source = found[name].load()()
    return adapter


@cache
def source_names() -> list[str]:
    """The names of all registered sources."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))
