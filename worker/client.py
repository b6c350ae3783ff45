"""The one HTTP session of a worker process: bounded in time and size, and silent about what it was asked."""

import logging
import ssl
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import ClientHandlerType

from models.errors import FetchError, SourceStoppedError, TransientError
from models.settings import Settings
from models.source import HttpRequest, HttpResponse

DNS_TTL = 60

# Gateways usually close an idle connection after 60 s or more: closing first avoids meeting a half-closed one.
KEEPALIVE = 30.0

logger = logging.getLogger(__name__)


class Client:
    """An `async with` block around one aiohttp session; safe to share by any number of tasks on its loop.

    `max_connections` bounds the open connections, 0 leaves that to the caller's permits.
    """

    def __init__(self, settings: Settings, *, max_connections: int = 0) -> None:
        self._settings = settings
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=self._max_connections, ttl_dns_cache=DNS_TTL, keepalive_timeout=KEEPALIVE, ssl=True
            ),
            timeout=aiohttp.ClientTimeout(
                total=settings.total_timeout, sock_connect=settings.connect_timeout, sock_read=settings.read_timeout
            ),
            headers={"User-Agent": settings.user_agent},
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            proxy=settings.proxy.get_secret_value() if settings.proxy else None,
            middlewares=(_send_once,),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def fetch(self, request: HttpRequest) -> HttpResponse:
        """Make one call, exactly once, and read its whole answer; redirects are not followed.

        Raises TransientError (timeout, connect, dns, proxy, tls, reset, truncated, malformed, oversize, client) or
        SourceStoppedError (tls, proxy, address). Neither its text nor its context holds the address' query.
        """
        if self._session is None:
            raise RuntimeError("the client is used inside `async with` only")
        try:
            return await self._fetch(self._session, request)
        except FetchError:
            raise
        except Exception as error:  # any text of aiohttp's may hold the address with the token in it
            failure = translated(error, self._settings)
        raise failure  # outside the except block, so that the original is not even its context

    async def _fetch(self, session: aiohttp.ClientSession, request: HttpRequest) -> HttpResponse:
        async with session.request(
            request.method,
            request.url,
            params=request.params,
            headers=request.headers,
            data=request.body,
            allow_redirects=False,
        ) as answer:
            body = await self._read(answer)
            return HttpResponse(answer.status, answer.headers, body)

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        """Count decoded bytes as they come: a small compressed body may unfold to gigabytes."""
        most = self._settings.max_body_bytes
        chunks: list[bytes] = []
        size = 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > most:
                answer.close()
                raise TransientError("oversize", f"the answer is larger than {most} bytes")
            chunks.append(chunk)
        return b"".join(chunks)


async def _send_once(request: aiohttp.ClientRequest, handler: ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from repeating a call behind our back after a lost connection: each call is paid for and counted."""
    try:
        return await handler(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        failure = _known(error)
    raise failure


def translated(error: Exception, settings: Settings) -> FetchError:
    """The FetchError for whatever a call raised."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return TransientError("connect", f"no connection within {settings.connect_timeout:g} s")
    if isinstance(error, aiohttp.SocketTimeoutError):
        return TransientError("timeout", f"silent for {settings.read_timeout:g} s")
    if isinstance(error, aiohttp.ClientHttpProxyError) and error.status == 407:
        return SourceStoppedError("proxy", "the proxy asks for a login, check SHOPCRAWL_PROXY")
    if isinstance(error, TimeoutError):
        return TransientError("timeout", f"no whole answer within {settings.total_timeout:g} s")
    return _known(error)


def _known(error: Exception) -> FetchError:
    for kinds, make, code, message in _TRANSLATIONS:
        if isinstance(error, kinds):
            return make(code, message)
    return TransientError("client", f"the call failed ({type(error).__name__})")


_Row = tuple[type[Exception] | tuple[type[Exception], ...], type[FetchError], str, str]

# First match counts, so special cases stand before general ones.
_TRANSLATIONS: tuple[_Row, ...] = (
    ((aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError), SourceStoppedError, "tls",
     "the server's certificate is not trusted for this address, check the base URL"),
    ((aiohttp.ClientConnectorSSLError, ssl.SSLError), TransientError, "tls", "the TLS handshake failed"),
    (aiohttp.ClientProxyConnectionError, TransientError, "proxy", "the proxy cannot be reached"),
    (aiohttp.ClientHttpProxyError, TransientError, "proxy", "the proxy refused the connection"),
    (aiohttp.ClientConnectorDNSError, TransientError, "dns", "the server's name cannot be resolved"),
    (aiohttp.ClientConnectorError, TransientError, "connect", "the server cannot be reached"),
    (aiohttp.ClientPayloadError, TransientError, "truncated", "the answer broke off or cannot be decompressed"),
    (aiohttp.ClientResponseError, TransientError, "malformed", "the answer is not proper HTTP"),
    ((aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError), SourceStoppedError, "address",
     "the address is not usable, check the base URL"),
    ((aiohttp.ServerDisconnectedError, OSError), TransientError, "reset", "the connection was lost"),
)  # fmt: skip
