"""The Taobao Open Platform's answers, JSON or XML, wrapped or simplified, read as one tree."""

import re
from typing import Any
from xml.etree.ElementTree import ParseError, XMLParser

from models.errors import TransientError
from worker.sources import base

MAX_XML_BYTES = 8 * 1024 * 1024
MAX_ROWS = 1_000
MAX_TOTAL = 10**9

# Nothing but the root may follow the first line: a document that declares entities is never parsed.
_XML = re.compile(r"(<\?xml[^>]{0,200}\?>\s*)?<[A-Za-z_][\w.\-]*_response[\s/>]")
_UNFINISHED = {3, 5}
"""Expat's numbers for a document that ends too early."""


def parse(body: bytes) -> Any:
    """The tree of an answer in either format. Raises TransientError with a code word for anything else."""
    body = body.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not body.startswith(b"<"):
        return base.parse_json(body)
    text = _decoded(body)
    if not _XML.match(text):
        raise TransientError("html", "the answer is a web page instead of JSON")
    return _parse_xml(text)


def _decoded(body: bytes) -> str:
    if len(body) > MAX_XML_BYTES:
        raise TransientError("oversize", f"the answer is XML of more than {MAX_XML_BYTES} bytes")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        pass
    raise TransientError("malformed", "the answer is not UTF-8")


def _parse_xml(text: str) -> Any:
    tree = _Tree()
    parser = XMLParser(target=tree)  # noqa: S314 (no declarations get here, depth and size are bounded)
    try:
        parser.feed(text)
        return parser.close()
    except ParseError as error:
        word = "truncated" if error.code in _UNFINISHED else "malformed"
    except (ValueError, LookupError):  # what the parser says of characters and encodings it cannot take
        word = "malformed"
    raise TransientError(word, f"the answer is {word} XML")


class _Tree:
    """Builds what the same answer in JSON would be: an element with children is an object, repeated ones are a list."""

    def __init__(self) -> None:
        self._open: list[tuple[dict[str, Any], list[str]]] = [({}, [])]

    def start(self, tag: str, attributes: dict[str, str]) -> None:  # noqa: ARG002 (they only repeat types)
        """Open an element. Raises TransientError if the nesting is absurd."""
        if len(self._open) > base.MAX_DEPTH:
            raise TransientError("nested", "the answer is nested too deeply")
        self._open.append(({}, []))

    def data(self, text: str) -> None:
        """Add to the text of the open element."""
        self._open[-1][1].append(text)

    def end(self, tag: str) -> None:
        """Close an element and hang it into the one around it."""
        children, texts = self._open.pop()
        value: Any = children or "".join(texts)
        siblings = self._open[-1][0]
        if tag not in siblings:
            siblings[tag] = value
        elif isinstance(siblings[tag], list):
            siblings[tag].append(value)
        else:
            siblings[tag] = [siblings[tag], value]

    def close(self) -> dict[str, Any]:
        """The whole tree: one key, the root's."""
        return self._open[0][0]


def refusal(answer: Any) -> dict[str, Any] | None:
    """The members of an error, which has the same form in both formats; None if the answer is none."""
    if not isinstance(answer, dict):
        return None
    if "error_response" in answer:
        said = answer["error_response"]
        return said if isinstance(said, dict) else {"msg": said}
    bare = "code" in answer and "total_results" not in answer and "items" not in answer
    return answer if bare and not any(name.endswith("_response") for name in answer) else None


def listing(answer: Any) -> tuple[int, list[Any]]:
    """The total and the rows of a success. Raises TransientError if it has no total or is no listing.

    The total is needed even beside rows: windows of time are planned by it, and none would be taken for nothing.
    """
    if not isinstance(answer, dict):
        raise TransientError("no-object", "JSON, but no object")
    named = [value for name, value in answer.items() if name.endswith("_response")]
    inner = named[0] if named else answer
    inner = inner if isinstance(inner, dict) else {}
    rows = _rows(inner.get("items"))
    if len(rows) > MAX_ROWS:
        raise TransientError("oversize", f"{len(rows)} items on one page")
    return _total(inner.get("total_results")), rows


def _rows(items: Any) -> list[Any]:
    """The rows in any of the shapes they come in; a list of one may be a bare object."""
    if isinstance(items, dict) and "item" in items:
        items = items["item"]
    if items is None or items == {} or (isinstance(items, str) and not items.strip()):
        return []
    if isinstance(items, dict):
        return [items]
    if isinstance(items, list):
        return items
    raise TransientError("items-type", "the items are no list")


def _total(value: Any) -> int:
    if value is None or value == "":
        raise TransientError("no-total", "the answer has no total_results")
    try:
        total = base.read_integer(value)
    except base.UNREADABLE:
        total = -1
    if not 0 <= total <= MAX_TOTAL:
        raise TransientError("bad-total", f"total_results is no number from 0 to {MAX_TOTAL}")
    return total
