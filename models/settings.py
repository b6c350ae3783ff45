"""Settings, read once from the environment or `.env`, frozen, and passed on as a value."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from models.billing import parse_prices
from models.errors import UsageError

SECRETS_DIR = Path("/run/secrets")
TRACKED_FIELDS = (
    "title",
    "status",
    "price",
    "drop_ship_price",
    "wholesale_price",
    "origin_price",
    "agent_price",
    "unit",
    "quantity_begin",
    "stock",
    "category_id",
    "category_path",
    "category_name",
    "image",
    "images",
)
TRACKABLE_FIELDS = (*TRACKED_FIELDS, "video_id", "new_product", "type", "outer_id", "props", "created_time")


class Settings(BaseSettings):
    """Every setting is `SHOPCRAWL_` plus the field's name in capitals; times are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="SHOPCRAWL_", env_file=".env", extra="ignore", frozen=True)

    data_dir: Path = Field(Path("shopcrawl-data"), description="folder of the embedded database, Redis and logs")
    database_url: SecretStr | None = Field(
        None, description="SQLAlchemy URL or postgresql://; empty: SQLite in DATA_DIR"
    )
    redis_url: SecretStr | None = Field(
        None, description="redis:// or rediss:// URL; empty: a private Redis is started"
    )
    concurrency: int = Field(200, ge=1, le=20_000, description="pages in flight in one worker process")
    workers: int = Field(1, ge=1, le=64, description="worker processes that an embedded crawl or `up` starts")
    in_flight: int = Field(0, ge=0, description="most messages sent and unfinished; 0: twice the fleet's concurrency")

    tmapi_base_url: str = Field("https://api.tmapi.io", description="TMAPI's address")
    tmapi_tokens: Annotated[tuple[SecretStr, ...], NoDecode] = Field((), description="TMAPI tokens, comma-separated")
    tmapi_rate: float = Field(0, ge=0, description="requests a second and token; 0: no rate limit")
    tmapi_rate_per_minute: float = Field(0, ge=0, description="requests a minute and token, evenly spread; 0: no limit")
    tmapi_calls_per_day: int = Field(0, ge=0, description="requests a day (UTC) and token; 0: no limit")
    tmapi_concurrency_start: float = Field(4, ge=1, description="calls in flight a token starts with")
    tmapi_concurrency_min: float = Field(1, ge=1, description="calls in flight a token never falls below")
    tmapi_concurrency_max: float = Field(200, ge=1, description="calls in flight a token never exceeds")
    tmapi_concurrency_fixed: float = Field(
        0, ge=0, description="calls in flight a token always has; 0: found by itself"
    )

    top_gateway_url: str = Field("https://eco.taobao.com/router/rest", description="Taobao Open Platform's gateway")
    top_app_key: str | None = Field(None, description="the app's key (AppKey)")
    top_app_secret: SecretStr | None = Field(None, description="the app's secret (AppSecret)")
    top_sign_method: Literal["hmac-sha256", "hmac", "md5"] = Field("hmac-sha256", description="how calls are signed")
    top_simplify: bool = Field(True, description="ask for the simplified JSON")
    top_rate: float = Field(0, ge=0, description="requests a second and app; 0: no rate limit")
    top_rate_per_minute: float = Field(0, ge=0, description="requests a minute and app, evenly spread; 0: no limit")
    top_calls_per_day: int = Field(0, ge=0, description="requests a day (GMT+8) and app; 0: no limit")
    top_concurrency_start: float = Field(4, ge=1, description="calls in flight an app starts with")
    top_concurrency_min: float = Field(1, ge=1, description="calls in flight an app never falls below")
    top_concurrency_max: float = Field(100, ge=1, description="calls in flight an app never exceeds")
    top_concurrency_fixed: float = Field(0, ge=0, description="calls in flight an app always has; 0: found by itself")
    top_page_size: int = Field(200, ge=1, le=200, description="items asked for per page")
    top_max_pages: int = Field(50_000, ge=1, description="pages of one shop that are never exceeded")
    top_window_rows: int = Field(
        20_000, ge=200, le=100_000, description="page number times page size that is never exceeded in one window"
    )
    top_window_margin: float = Field(120, ge=0, description="seconds before now at which windows of time end")
    top_overlap: float = Field(600, ge=0, description="seconds that an incremental crawl reaches back")
    secret_key: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Fernet keys for stored sessions, comma-separated, newest first; empty: a file in DATA_DIR"
    )

    currency: str = Field("CNY", min_length=1, max_length=8, description="what prices and budgets of money are in")
    tmapi_prices: str = Field("0", description="price of a call; outcomes with their own: 0.01,417=0,503=0")
    top_prices: str = Field("0", description="price of a call; outcomes with their own: 0.01,27=0")
    tmapi_daily_calls: int | None = Field(None, ge=0, description="calls a day (UTC) never exceeded")
    tmapi_daily_spend: Decimal | None = Field(None, ge=0, description="money a day never exceeded")
    top_daily_calls: int | None = Field(None, ge=0, description="calls a day (UTC) never exceeded")
    top_daily_spend: Decimal | None = Field(None, ge=0, description="money a day never exceeded")
    credential_daily_calls: int | None = Field(None, ge=0, description="calls a day (UTC) of one credential")

    page_size: int = Field(20, ge=1, le=200, description="items asked for per page")
    max_pages: int = Field(5_000, ge=1, description="pages of one shop that are never exceeded")
    max_tries: int = Field(5, ge=1, description="failed answers after which a page is dead")
    max_crashes: int = Field(5, ge=1, description="workers lost with a page after which the page is dead")
    retry_base: float = Field(0.5, gt=0, description="first back-off, doubled with each try, with full jitter")
    retry_cap: float = Field(60, gt=0, description="longest back-off")
    inline_wait: float = Field(
        5, ge=0, description="longest back-off waited inside a task; longer ones go to the ledger"
    )
    urgent_share: float = Field(
        0.9,
        ge=0.1,
        le=1,
        description="part of the permits, and of what is sent, that urgent pages get while others wait",
    )
    probe_interval: float = Field(
        60, gt=0, description="first pause before a parked credential is tried; doubles to 1 h"
    )

    sticky_answers: int = Field(
        8, ge=0, description="answers of a shop that are needed to judge whether it rests for its 417s; 0: never"
    )
    sticky_share: float = Field(0.6, gt=0, le=1, description="share of 417 among them at which it rests")
    sticky_source_answers: int = Field(
        50, ge=0, description="answers of a source that are needed to judge whether all of it rests; 0: never"
    )
    sticky_source_share: float = Field(0.8, gt=0, le=1, description="share of 417 among them at which it rests")
    sticky_source_shops: int = Field(10, ge=1, description="different shops that those 417 must come from")
    sticky_rest: float = Field(60, gt=0, description="first rest, after which one page is tried; doubles each time")
    sticky_rest_cap: float = Field(3600, gt=0, description="longest rest")

    tracked_fields: Annotated[tuple[str, ...], NoDecode] = Field(
        TRACKED_FIELDS, description="item fields of which each change is kept, comma-separated"
    )
    sales_retention: float = Field(400, ge=0, description="days that sales figures are kept; 0: for ever")
    second_pass_share: float = Field(
        0.2, ge=0, le=5, description="calls of a second pass over a shop, as a share of its pages; 0: none is made"
    )
    second_pass_calls: int = Field(
        5, ge=0, description="calls of a second pass that a small shop may take all the same"
    )
    shrink_guard: float = Field(
        0.3, gt=0, le=1, description="share of its items that a shop may lose at once without being suspect; 1: any"
    )
    gone_after: int = Field(
        2, ge=1, le=100, description="complete crawls without an item after which it counts as gone"
    )
    webhook_timeout: float = Field(10, gt=0, description="longest delivery of changes to a subscriber")

    connect_timeout: float = Field(10, gt=0, description="time to connect")
    read_timeout: float = Field(65, gt=0, description="longest silence inside an answer")
    total_timeout: float = Field(90, gt=0, description="longest whole call; the vendor asks for 60 or more")
    max_body_bytes: int = Field(8 * 1024 * 1024, ge=1024, description="largest decoded answer accepted")
    proxy: SecretStr | None = Field(None, description="HTTP proxy for API calls; the environment's proxies are ignored")
    user_agent: str = Field("shopcrawl/0.1 (+bulk shop crawler)", description="User-Agent header")

    archive: bool = Field(True, description="keep each page's body, compressed and token-free")
    task_events: Literal["auto", "always", "never"] = Field(
        "auto", description="when workers send Celery task events; auto: from when Flower first asks for them"
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least severe level logged")
    log_json: bool = Field(False, description="log JSON lines instead of readable ones")
    metrics_port: int = Field(
        0, ge=0, le=65535, description="first port of the Prometheus endpoints, each process takes a free one; 0: off"
    )
    metrics_host: str = Field("127.0.0.1", description="address of the Prometheus endpoint")
    flower_host: str = Field("127.0.0.1", description="address Flower listens on")
    flower_port: int = Field(5555, ge=0, le=65535, description="port Flower listens on")
    flower_user: str | None = Field(None, description="Flower's user; needed off loopback")
    flower_password: SecretStr | None = Field(None, description="Flower's password; needed off loopback")
    allow_root: bool = Field(False, description="let the worker, producer and Flower services run as root")

    @field_validator("tmapi_tokens", "secret_key", "tracked_fields", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator(
        "database_url",
        "redis_url",
        "proxy",
        "flower_password",
        "flower_user",
        "top_app_key",
        "top_app_secret",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator(
        "tmapi_daily_calls",
        "tmapi_daily_spend",
        "top_daily_calls",
        "top_daily_spend",
        "credential_daily_calls",
        mode="before",
    )
    @classmethod
    def _empty_is_no_cap(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("tmapi_prices", "top_prices")
    @classmethod
    def _prices_are_prices(cls, value: str) -> str:
        try:
            parse_prices(value)
        except UsageError as error:
            raise ValueError(str(error)) from None
        return value

    @field_validator("tracked_fields")
    @classmethod
    def _fields_can_be_tracked(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(TRACKABLE_FIELDS)):
            raise ValueError(f"{unknown[0][:40]!r} cannot be tracked; these can: {', '.join(TRACKABLE_FIELDS)}")
        return value

    @field_validator("proxy")
    @classmethod
    def _proxy_is_http(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not _is_http_url(value.get_secret_value()):
            raise ValueError("must be an http:// or https:// URL")
        return value

    @property
    def database(self) -> str:
        """The database URL with its async driver: asyncpg for PostgreSQL, aiosqlite for SQLite."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{self.data_dir.absolute() / 'shopcrawl.db'}"
        return async_url(self.database_url.get_secret_value())

    @property
    def log_file(self) -> Path:
        """Where commands that use the terminal for something else write their log."""
        return self.data_dir / "logs" / "shopcrawl.log"

    @property
    def secrets(self) -> tuple[str, ...]:
        """Every secret text in force, for redaction."""
        single = (self.database_url, self.redis_url, self.flower_password, *self.secret_key)
        return (*self.sent_secrets, *(s.get_secret_value() for s in single if s is not None))

    @property
    def sent_secrets(self) -> tuple[str, ...]:
        """The secrets that calls carry, and that answers may therefore give back."""
        return tuple(
            s.get_secret_value() for s in (*self.tmapi_tokens, self.top_app_secret, self.proxy) if s is not None
        )


def _is_http_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def async_url(url: str) -> str:
    """Name the async driver in a database URL. Raises UsageError for any database but PostgreSQL and SQLite."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme in {
        "postgresql",
        "postgres",
        "postgresql+asyncpg",
        "postgresql+psycopg",
        "postgresql+psycopg2",
    }:
        return f"postgresql+asyncpg://{rest}"
    if separator and scheme in {"sqlite", "sqlite+aiosqlite"}:
        return f"sqlite+aiosqlite://{rest}"
    raise UsageError("SHOPCRAWL_DATABASE_URL must start with postgresql:// or sqlite:///")


def load_settings(**overrides: object) -> Settings:
    """Read the settings, with `overrides` (from command line options) on top. Raises UsageError with one clear line."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        folder = SECRETS_DIR if SECRETS_DIR.is_dir() else None
        return Settings(_secrets_dir=folder, **given)  # type: ignore[call-arg, arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        name = "SHOPCRAWL_" + "_".join(str(part) for part in first["loc"]).upper()
        raise UsageError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None
