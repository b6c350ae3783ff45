"""The platform's errors: numbers, messages, and the names by which a script asks for them."""

from tests.simulator.outcomes import ScriptError

MESSAGES = {
    4: "User Call Limited",
    5: "Session Call Limited",
    6: "Partner Call Limited",
    7: "App Call Limited",
    8: "App Call Exceeds Limited Frequency",
    9: "Http Action Not Allowed",
    10: "Service Currently Unavailable",
    11: "Insufficient ISV Permissions",
    12: "Insufficient User Permissions",
    13: "Insufficient Partner Permissions",
    15: "Remote service error",
    21: "Missing method",
    22: "Invalid method",
    23: "Invalid format",
    24: "Missing signature",
    25: "Invalid signature",
    26: "Missing session",
    27: "Invalid session",
    28: "Missing app key",
    29: "Invalid app key",
    30: "Missing timestamp",
    31: "Invalid timestamp",
    32: "Missing version",
    33: "Invalid version",
    34: "Unsupported version",
    40: "Missing required arguments",
    41: "Invalid arguments",
    42: "Forbidden Request",
    43: "Parameter Error",
    50: "Remote service error",
}
_ISP = ("top-remote-connection-timeout", "remote-service-error", "top-remote-service-unavailable")

# outcome -> how the ledger counts it; "200" is a page that reads as success
SHAPES = {
    "ok": "200",
    "slow": "200",
    "drip": "200",
    "wrong_type": "200",
    "short": "200",
    "empty_page": "200",
    "html200": "html200",
    "empty": "empty",
    "truncated": "truncated",
    "reset": "reset",
    "close": "close",
    "oversize": "oversize",
    "deep": "deep",
    "redirect": "302",
}
STATUSES = frozenset({"403", "404", "429", "500", "502", "503", "504"})  # of the gateway in front, HTML pages
WHOLE = frozenset({"ok", "slow", "drip", "wrong_type"})  # every row of the page reaches a client


class TopError(Exception):
    """An answer in the platform's error form."""

    def __init__(self, code: int, sub_code: str = "", sub_msg: str = "") -> None:
        super().__init__(code, sub_code, sub_msg)
        self.code = code
        self.sub_code = sub_code
        self.sub_msg = sub_msg or ("非法参数" if sub_code.startswith("isv.invalid-parameter") else sub_code)

    @property
    def name(self) -> str:
        """How the ledger counts it: the code, with the sub code if there is one."""
        return f"{self.code}/{self.sub_code}" if self.sub_code else str(self.code)

    def body(self) -> dict[str, object]:
        """Return the members of `error_response`, those that are absent left out."""
        body: dict[str, object] = {"code": self.code, "msg": MESSAGES.get(self.code, "Unknown error")}
        if self.sub_code:
            body |= {"sub_code": self.sub_code, "sub_msg": self.sub_msg}
        return body


def error_of(outcome: str, code: int | None = None, draw: float = 0.0) -> TopError | None:
    """Return the error a scripted outcome stands for, None if it is a shape or a status; ScriptError for no outcome.

    "isp" (one of three by the draw), "isp:NAME", "isv:NAME", "sub:ANY.SUB-CODE" and "code:NUMBER"; `code` overrides
    the usual number.
    """
    if outcome in SHAPES or outcome in STATUSES:
        return None
    kind, _, name = outcome.partition(":")
    if kind == "isp":
        return TopError(code or 15, f"isp.{name or _ISP[int(draw * len(_ISP))]}")
    if kind == "isv" and name:
        return TopError(code or (11 if name.startswith("permission") else 50), f"isv.{name}")
    if kind == "sub" and name:
        return TopError(code or 15, name)
    if kind == "code" and name.isdecimal():
        return TopError(int(name))
    known = ["isp", "isp:NAME", "isv:NAME", "sub:NAME", "code:NUMBER", *sorted(STATUSES | SHAPES.keys())]
    raise ScriptError(f"unknown outcome {outcome!r}; known: {', '.join(known)}")
