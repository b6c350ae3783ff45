"""Sends one signed message to a subscriber: bounded in time and size, without redirects, proxies or cookies."""

import ssl
from collections.abc import Mapping

import aiohttp

from producer.webhooks.messages import Answer

LARGEST_ANSWER = 4_096
"""Bytes of an answer that are read; packed ones stay packed."""


async def post(url: str, body: bytes, headers: Mapping[str, str], *, timeout: float) -> Answer:
    """Send a message once and return the answer, not redacted; nothing is raised for a bad address or receiver."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=1, force_close=True, ssl=True),
                timeout=aiohttp.ClientTimeout(total=timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
            ) as session,
            session.post(url, data=body, headers=headers, allow_redirects=False) as answer,
        ):
            return await _read(answer)
    except (aiohttp.ClientError, OSError, ValueError) as error:  # their texts may repeat the address
        return Answer(None, _words(error, timeout))


async def _read(answer: aiohttp.ClientResponse) -> Answer:
    """The status counts, even if the body then breaks off."""
    body = b""
    try:
        while len(body) <= LARGEST_ANSWER and (chunk := await answer.content.read(LARGEST_ANSWER)):
            body += chunk
    except (aiohttp.ClientError, OSError):
        pass
    return Answer(answer.status, body[:LARGEST_ANSWER].decode(errors="replace"), len(body) > LARGEST_ANSWER)


def _words(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return next((words for kinds, words in _WORDS if isinstance(error, kinds)), f"not sent ({type(error).__name__})")


# First match counts, so special cases stand before general ones.
_WORDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    ((aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError), "its certificate is not trusted"),
    ((aiohttp.ClientConnectorSSLError, ssl.SSLError), "the TLS handshake failed"),
    (aiohttp.ClientConnectorDNSError, "its name cannot be resolved"),
    (aiohttp.ClientConnectorError, "it cannot be reached"),
    (aiohttp.ClientResponseError, "its answer is not proper HTTP"),
    ((aiohttp.InvalidURL, ValueError), "its address is not usable"),
    ((aiohttp.ServerDisconnectedError, OSError), "the connection was lost"),
)
