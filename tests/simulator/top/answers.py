"""Answers as the platform writes them: JSON or XML, wrapped or simplified."""

from typing import Any, NamedTuple
from xml.sax.saxutils import escape

import msgspec

from tests.simulator.server import Reply
from tests.simulator.top.errors import TopError
from tests.simulator.top.protocol import WRAPPER
from tests.simulator.top.switches import TopSwitches

JSON_TYPE = b"text/javascript;charset=UTF-8"
XML_TYPE = b"text/xml;charset=UTF-8"
_EMPTY: dict[str, dict[str, Any]] = {
    "list": {"items": {"item": []}},
    "object": {"items": {}},
    "array": {"items": []},
    "missing": {},
}


class Style(NamedTuple):
    """How a call wants its answer."""

    xml: bool = True
    simplify: bool = False


def style_of(params: dict[str, str]) -> Style:
    """Read `format` and `simplify`; what is neither json nor true counts as xml and false."""
    xml = params.get("format") != "json"
    return Style(xml, not xml and params.get("simplify", "").lower() == "true")


def page_body(rows: list[dict[str, Any]], total: int, request_id: str, style: Style, switches: TopSwitches) -> bytes:
    """Return a page in the caller's style; `request_id` may be empty."""
    payload: dict[str, Any] = {"total_results": total} | _items(rows, style, switches)
    if request_id:
        payload["request_id"] = request_id
    if style.xml:
        return _xml(WRAPPER, payload)
    body = msgspec.json.encode(payload if style.simplify else {WRAPPER: payload})
    if switches.raw_control:
        body = body.replace(b"\\t", b"\t").replace(b"\\n", b"\n")  # no title holds a backslash of its own
    return body


def _items(rows: list[dict[str, Any]], style: Style, switches: TopSwitches) -> dict[str, Any]:
    if not rows:
        if style.simplify and switches.empty == "list":
            return _EMPTY["array"]
        return _EMPTY[switches.empty]
    items = rows[0] if switches.single_object and len(rows) == 1 else rows
    return {"items": items if style.simplify else {"item": items}}


def error_answer(error: TopError, request_id: str, style: Style) -> Reply:
    """Return an error, with HTTP status 200 like every answer of the platform."""
    body = error.body() | ({"request_id": request_id} if request_id else {})
    if style.xml:
        return Reply(200, _xml("error_response", body), XML_TYPE)
    return Reply(200, msgspec.json.encode({"error_response": body}), JSON_TYPE)


def _xml(root: str, payload: dict[str, Any]) -> bytes:
    return f'<?xml version="1.0" encoding="utf-8" ?>{_element(root, payload)}'.encode()


def _element(name: str, value: Any) -> str:
    if isinstance(value, list):
        return "".join(_element(name, each) for each in value)
    if isinstance(value, dict):
        inner = "".join(_element(key, each) for key, each in value.items())
        return f"<{name}>{inner}</{name}>" if inner else f"<{name}/>"
    return f"<{name}>{escape(str(value))}</{name}>"
