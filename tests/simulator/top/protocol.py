"""What the platform checks before it looks for goods: system parameters in their documented order, then arguments."""

from collections.abc import Mapping
from typing import NamedTuple

from tests.simulator.clock import from_china
from tests.simulator.top.errors import TopError
from tests.simulator.top.goods import COLUMNS, FIELDS
from tests.simulator.top.sessions import Grant, Sessions
from tests.simulator.top.sign import is_signed
from tests.simulator.top.switches import TopSwitches
from tests.simulator.top.warehouse import Selection

METHOD = "alibaba.tjb.items.inventory.get"
WRAPPER = METHOD.replace(".", "_") + "_response"
NARROW = ("num_iid", "title", "nick", "cid")
_MAX_SIZE = 200
_ALWAYS = (0, 2**32)

Params = Mapping[str, str]


class Query(NamedTuple):
    """The arguments once they make sense."""

    fields: tuple[str, ...]
    selection: Selection
    page: int
    size: int


def authenticate(params: Params, switches: TopSwitches, sessions: Sessions, now: float) -> Grant:
    """Check the system parameters in the order of their codes, 21 to 34; TopError for the first that is wrong."""
    _require(params, "method", 21)
    if params["method"] != METHOD:
        raise TopError(22)
    if params.get("format", "xml") not in {"xml", "json"}:
        raise TopError(23)
    _require(params, "sign", 24)
    app = params.get("app_key", "")
    secret = switches.secret(app)
    if secret is not None and not is_signed(params, secret):
        raise TopError(25)
    grant = sessions.resolve(params.get("session", ""), app if secret is not None else "")
    _require(params, "app_key", 28)
    if secret is None:
        raise TopError(29)
    _check_timestamp(params, switches, now)
    _check_version(params)
    return grant


def _require(params: Params, name: str, code: int) -> None:
    if not params.get(name):
        raise TopError(code)


def _check_timestamp(params: Params, switches: TopSwitches, now: float) -> None:
    _require(params, "timestamp", 30)
    try:
        stamped = from_china(params["timestamp"])
    except ValueError:
        raise TopError(31) from None
    if switches.timestamps != "off" and abs(now - stamped) > switches.tolerance:
        raise TopError(31)


def _check_version(params: Params) -> None:
    _require(params, "v", 32)
    if not params["v"].replace(".", "", 1).isdecimal():
        raise TopError(33)
    if params["v"] != "2.0":
        raise TopError(34)


def parse_query(params: Params, switches: TopSwitches) -> Query:
    """Read the arguments; TopError for the first that is missing or wrong."""
    fields = _fields(params, switches)
    page = _positive(params, "page_no", 1, switches)
    size = _positive(params, "page_size", 40, switches)
    if size > _MAX_SIZE:
        raise _invalid("page_size", switches)
    column, descending = _order(params, switches)
    since, until = _window(params, switches)
    cid = _positive(params, "cid", 0, switches) or None
    if page * size > switches.window:
        raise _invalid("gain-number-too-large", switches)
    return Query(fields, Selection(column, descending, since, until, cid, params.get("q", "")), page, size)


def _fields(params: Params, switches: TopSwitches) -> tuple[str, ...]:
    asked = tuple(name.strip() for name in params.get("fields", "").split(",") if name.strip())
    if not asked:
        raise TopError(40, "isv.missing-parameter:fields", "缺少必选参数")
    known = NARROW if switches.fields == "narrow" else FIELDS
    strict = switches.fields == "narrow" or switches.unknown_fields == "refuse"
    if strict and not set(asked) <= set(known):
        raise _invalid("fields", switches)
    return tuple(name for name in dict.fromkeys(asked) if name in known)


def _positive(params: Params, name: str, default: int, switches: TopSwitches) -> int:
    text = params.get(name) or str(default)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
    if number < 1 and params.get(name):
        raise _invalid(name, switches)
    return number


def _order(params: Params, switches: TopSwitches) -> tuple[str, bool]:
    column, _, direction = (params.get("order_by") or "list_time:desc").partition(":")
    if column not in COLUMNS or direction not in {"asc", "desc"}:
        raise _invalid("order_by", switches)
    return column, direction == "desc"


def _window(params: Params, switches: TopSwitches) -> tuple[int, int]:
    bounds = list(_ALWAYS)
    for at, name in enumerate(("start_modified", "end_modified")):
        if not params.get(name):
            continue
        try:
            bounds[at] = from_china(params[name])
        except ValueError:
            raise _invalid(name, switches) from None
        bounds[at] += at and not switches.end_exclusive
    return max(bounds[0], 0), min(max(bounds[1], 0), _ALWAYS[1])


def _invalid(name: str, switches: TopSwitches) -> TopError:
    return TopError(switches.invalid_code, f"isv.invalid-parameter:{name}")
