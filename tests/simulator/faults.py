"""What a faulty outcome looks like on the wire."""

import gzip
import json
import zlib
from collections.abc import Iterator
from functools import lru_cache

from tests.simulator.outcomes import GATEWAY_CODES, MESSAGES, Channel
from tests.simulator.script import Outcome
from tests.simulator.server import HTML_TYPE, Reply


def error_reply(code: int, channel: Channel, retry_after: float = 0.0, message: str = "") -> Reply:
    """Render an error: by status with JSON, in a 200 body, in a 200 body with the code as text, empty, or HTML."""
    text = message or MESSAGES[code]
    headers = [(b"Retry-After", b"%d" % max(1, round(retry_after)))] if retry_after else []
    if channel in {"body", "text"}:
        body = {"code": str(code) if channel == "text" else code, "msg": text, "data": None}
        return Reply(200, _json(body), headers=headers)
    if channel == "empty":
        return Reply(code, b"", headers=headers)
    if channel == "html":
        page = f"<html><head><title>{code}</title></head><body><center><h1>{code} {text}</h1></center></body></html>"
        return Reply(code, page.encode(), HTML_TYPE, headers)
    return Reply(
        code, _json({"message": text} if code in GATEWAY_CODES else {"code": code, "msg": text}), headers=headers
    )


def fault_reply(outcome: Outcome, good: bytes) -> Reply:
    """Turn the good page's body into what the outcome sends."""
    rule, reply = outcome.rule, Reply(200, good)
    match outcome.name:
        case "reset" | "close":
            reply.ending = outcome.name
        case "drip":
            reply.drip_seconds = 1.0 if rule.seconds is None else rule.seconds
        case "wrong_type":
            reply.content_type = HTML_TYPE
        case "ok_500":
            reply.status = rule.status
        case "redirect":
            reply = Reply(302, b"<html>moved</html>", HTML_TYPE, [(b"Location", b"/login")])
        case "html200":
            reply = login_page()
        case "oversize" if rule.plain:
            reply.body = stream_zeros(rule.megabytes)
        case "oversize":
            reply = Reply(200, _bomb(rule.megabytes), headers=[(b"Content-Encoding", b"gzip")])
        case _:
            reply.body = _damaged(outcome, good)
    return reply


def login_page() -> Reply:
    """The page a redirect leads to: HTML with status 200."""
    form = "<!doctype html><html><head><title>登录</title></head><body><form>请登录后继续</form></body></html>"
    return Reply(200, form.encode(), HTML_TYPE)


def stream_zeros(megabytes: int) -> Iterator[bytes]:
    """Yield a JSON document of the given size in pieces of 1 MB."""
    yield b'{"code":200,"msg":"success","data":{"items":[],"padding":"'
    piece = b"0" * 1_000_000
    for _ in range(megabytes):
        yield piece
    yield b'"}}'


def _damaged(outcome: Outcome, good: bytes) -> bytes:
    """Return a body that is not the good page although status and content type say so."""
    body = good
    match outcome.name:
        case "empty":
            body = b""
        case "truncated":
            body = good[: len(good) * 2 // 3]
        case "code_text":
            body = good.replace(b'"code":200', b'"code":"200"', 1)
        case "no_code":
            body = good.replace(b'"code":200,', b"", 1)
        case "data_text":
            body = _json({"code": 200, "msg": "success", "data": "no data, please try later"})
        case "data_null":
            body = _json({"code": 200, "msg": "success", "data": None})
        case "items_null" | "items_missing":
            body = _without_items(good, keep_key=outcome.name == "items_null")
        case "deep":
            depth = outcome.rule.depth
            body = b'{"code":200,"msg":"success","data":{"items":' + b"[" * depth + b"]" * depth + b"}}"
    return body


def _without_items(good: bytes, *, keep_key: bool) -> bytes:
    page = json.loads(good)
    page["data"]["items"] = None
    if not keep_key:
        del page["data"]["items"]
    return _json(page)


@lru_cache(maxsize=4)
def _bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=16 + zlib.MAX_WBITS)
    return b"".join(packer.compress(piece) for piece in stream_zeros(megabytes)) + packer.flush()


def gzipped(reply: Reply) -> Reply:
    """Compress a whole, plain reply; anything else passes unchanged."""
    encoded = any(name == b"Content-Encoding" for name, _ in reply.headers)
    if isinstance(reply.body, bytes) and reply.body and not encoded:
        reply.body = gzip.compress(reply.body, compresslevel=1)
        reply.headers = [*reply.headers, (b"Content-Encoding", b"gzip")]
    return reply


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
