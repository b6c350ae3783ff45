"""The names of everything a call can end in."""

from typing import Any, Literal, TypeVar, get_args

import msgspec

T = TypeVar("T")

Channel = Literal["status", "body", "text", "empty", "html", "mixed"]

MESSAGES = {
    401: "Unauthorized",
    403: "You cannot consume this service",
    404: "no Route matched with those values",
    417: "Failed to retrieve data, please try again or contact customer service",
    422: "Parameter error",
    429: "API rate limit exceeded",
    439: "Subscription expired or insufficient balance",
    499: "Please try again or set your request timeout to 60 seconds",
    500: "Unexpected error, please contact customer service",
    502: "An invalid response was received from the upstream server",
    503: "API request concurrency limit exceeded, please reduce concurrency",
    504: "The upstream server is timing out",
}
GATEWAY_CODES = frozenset({401, 403, 404, 429, 502, 504})  # answered by the gateway: `message` only, no code
CODES = frozenset(str(code) for code in MESSAGES)

# outcome -> what a careful client makes of it; "200" means the page arrived whole or in a shape that reads as success
SHAPES = {
    "ok": "200",
    "slow": "200",
    "drip": "200",
    "code_text": "200",
    "no_code": "200",
    "wrong_type": "200",
    "short": "200",
    "partial": "200",
    "repeat_first": "200",
    "repeat_last": "200",
    "ok_500": "500",
    "html200": "html200",
    "empty": "empty",
    "truncated": "truncated",
    "reset": "reset",
    "close": "close",
    "data_text": "data_text",
    "data_null": "data_null",
    "items_null": "items_null",
    "items_missing": "items_missing",
    "oversize": "oversize",
    "deep": "deep",
    "redirect": "302",
}
WHOLE = frozenset(
    {"ok", "slow", "drip", "code_text", "no_code", "wrong_type"}
)  # every row of the page reaches a client


class ScriptError(ValueError):
    """The control endpoint was asked for something that does not exist; the text says what."""


def parse_fault(text: str) -> tuple[str, Channel | None]:
    """Split "417:body" into outcome and channel; ScriptError if either does not exist."""
    name, _, channel = text.partition(":")
    if name not in CODES and name not in SHAPES:
        raise ScriptError(f"unknown outcome {name!r}; known: {', '.join(sorted(CODES | SHAPES.keys()))}")
    for known in get_args(Channel):
        if channel == known:
            return name, known
    if channel:
        raise ScriptError(f"unknown channel {channel!r}; known: {', '.join(get_args(Channel))}")
    return name, None


def convert(values: Any, kind: type[T]) -> T:
    """Return decoded JSON as a value of the kind; ScriptError says what does not fit."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ScriptError(str(error)) from None
