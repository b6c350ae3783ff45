"""The story of one page: permit, call, decode, decide, store; read this first."""

import asyncio
import logging
import random
import time
from datetime import datetime, timedelta
from functools import partial

import msgspec

from models.compression import compress
from models.errors import (
    BannedError,
    CredentialParkedError,
    EarlyWindowError,
    FetchError,
    FieldsRefusedError,
    ShopUnauthorisedError,
    SourceStoppedError,
    ThrottledError,
    TransientError,
    UnavailableError,
    UsageError,
    WindowTooLargeError,
)
from models.ledger import TOO_FAR, Calls, PageResult, Stored, with_page
from models.messages import NORMAL_PRIORITY, PageTask
from models.redact import redact, redact_bytes
from models.source import Credential, FetchedPage, HttpResponse, Source, source_named
from worker import metrics
from worker.bans import AllBanned
from worker.circuit import Stop, after_stop, obey
from worker.circuits import AtRest
from worker.hands import Attempts, Hands
from worker.permits import AllParked, DuplicateDelivery, Permit
from worker.retry import Dead, FailShop, Hold, ObeyBan, PutBack, WaitHere, after_ban, decide

# A page waits this long for a permit, then gives its slot to another: far less than the broker's redelivery time.
LONGEST_PERMIT_WAIT = 300.0
NO_KEY_WAIT = 60.0  # seconds until a page whose session this machine cannot open is tried again, here or elsewhere
NEEDS_AUTHORISATION = "needs authorisation"

logger = logging.getLogger(__name__)


async def crawl_page(task: PageTask, hands: Hands) -> str:
    """Fetch and store one page; returns the state it ended in, or `duplicate` if another delivery has taken it."""
    if hands.held.get(task.page_id, -1) >= task.fence:
        return "duplicate"
    hands.held[task.page_id] = task.fence
    attempts = Attempts(task.tries)
    try:
        result, stored = await _fetch_and_store(task, attempts, hands)
    except DuplicateDelivery:
        return "duplicate"
    except asyncio.CancelledError:
        if not attempts.called:
            hands.limiter.unclaim(task.page_id, task.fence)  # the message goes back to the queue and may run again
        raise  # else the page is sent anew, with a reservation of its own for the call that may be made twice
    finally:
        hands.circuits.let_go(task)
        if hands.held.get(task.page_id) == task.fence:
            del hands.held[task.page_id]
    hands.limiter.finished(task.page_id)
    metrics.count_page(task.source, result, stored)
    if stored is not None and stored.state == result.state in {"dead", "refused", "held"}:
        fields = {"crawl": task.crawl_id, "shop": task.shop, "page": task.page, "reason": result.reason}
        logger.info("page %s", result.state, extra=fields)
    return stored.state if stored else "outdated"


async def _fetch_and_store(task: PageTask, attempts: Attempts, hands: Hands) -> tuple[PageResult, Stored | None]:
    await hands.writer.intake.enter(urgent=task.priority < NORMAL_PRIORITY)
    try:
        result = await _fetch_until_decided(task, attempts, hands)
        return result, await hands.writer.store(result)
    finally:
        hands.writer.intake.leave()


async def _fetch_until_decided(task: PageTask, attempts: Attempts, hands: Hands) -> PageResult:
    source = source_named(task.source)
    wide = (task.source, str(task.options.get("fields")))
    while True:
        turn = await _turn(task, source, attempts, hands)
        if isinstance(turn, PageResult):
            return turn
        session, permit = turn
        if wide in hands.too_wide:  # found out by another page, perhaps while this one waited
            task = _narrower(task, source) or task
        try:
            attempts.called = True
            response, fetched = await _call(task, source, permit, session, attempts, hands)
        except FetchError as error:
            attempts.count(permit.credential, error)
            narrower = _narrower(task, source) if isinstance(error, FieldsRefusedError) else None
            pause = 0.0 if narrower else await _react(task, error, attempts, session, hands)
            if isinstance(pause, PageResult):
                return pause
            task = narrower or task
            ended = await _pay_for_another(task, attempts, hands, pause)
            if ended is not None:
                return ended
        else:
            attempts.count(permit.credential, None)
            await hands.circuits.good(task)
            if task.credential is not None:
                await hands.parking.unpark(task.source, permit.credential.name)
            if wide[1] != str(task.options.get("fields")):
                hands.too_wide.add(wide)
            body = _archived(response.body, hands)
            return _result(task, hands, attempts, state="done", outcome="200", fetched=fetched, body=body)


async def _pay_for_another(task: PageTask, attempts: Attempts, hands: Hands, pause: float) -> PageResult | None:
    """Settle the call made, reserve one more and pause; the page's result if a budget forbids that call.

    In the ledger before the call leaves: whatever dies now, no call is forgotten and no budget exceeded.
    """
    rested = asyncio.create_task(asyncio.sleep(pause))
    try:
        stored = await hands.writer.store(_result(task, hands, attempts, state="sent"))
        attempts.calls.clear()
        attempts.called = False
        if stored is None:
            raise DuplicateDelivery(f"page {task.page_id} was sent anew")
        if stored.refused is not None:
            attempts.reserved = 0
            return _result(task, hands, attempts, state="ready", reason=stored.refused, delay=0)
        await rested
        return None
    finally:
        rested.cancel()


def _narrower(task: PageTask, source: Source) -> PageTask | None:
    """The same page with fewer fields, None if they are few already."""
    options = source.narrowed(task.options)
    return None if options is None else msgspec.structs.replace(task, options=options)


async def _turn(
    task: PageTask, source: Source, attempts: Attempts, hands: Hands
) -> tuple[str | None, Permit] | PageResult:
    """The shop's session and a permit to call, or the result of a page that gets none."""
    put_back = partial(_result, task, hands, attempts, state="ready")
    try:
        session = await hands.sessions.get(task.shop_id) if source.needs_session else None
        return session, await _paid_permit(task, source, attempts, hands)
    except AtRest as rest:
        return _at_rest(task, rest.stop, attempts, hands)
    except AllParked as parked:
        return put_back(reason=f"waits: {parked}", delay=1)
    except AllBanned as banned:
        return put_back(reason=f"waits {banned}", delay=after_ban(banned.seconds, random.random()))
    except ShopUnauthorisedError as error:
        return _result(task, hands, attempts, state="held", reason=f"{NEEDS_AUTHORISATION}: {error.message}")
    except (UsageError, UnavailableError) as error:
        return put_back(reason=f"waits: {error}", delay=NO_KEY_WAIT)
    except TimeoutError:
        return put_back(reason="waited long for a permit", delay=0)


async def _paid_permit(task: PageTask, source: Source, attempts: Attempts, hands: Hands) -> Permit:
    """A permit of a credential whose own daily budget allows the call; one that is used up rests until midnight."""
    while True:
        permit = await _permit(task, source, hands, claim=not attempts.claimed)
        attempts.claimed = True
        credits_ = hands.credits
        if credits_ is None or await credits_.take(task.source, permit.credential.name):
            return permit
        reason = f"its budget of {credits_.cap} calls for today is used up"
        hands.limiter.ban(task.source, permit.credential.name, credits_.seconds_left(), reason)
        permit.release(ok=False, throttled=False)


async def _permit(task: PageTask, source: Source, hands: Hands, *, claim: bool) -> Permit:
    credentials, limits = source.credentials(hands.settings), source.limits(hands.settings)
    fence = (task.page_id, task.fence) if claim else None
    started = time.monotonic()
    async with asyncio.timeout(LONGEST_PERMIT_WAIT):
        while True:
            await hands.circuits.enter(task)
            permit = await hands.limiter.acquire(
                task.source, credentials, limits, priority=task.priority, claim=fence, only=task.credential
            )
            if hands.circuits.admits(task):
                break
            permit.release(ok=False, throttled=False)  # the shop or the source came to rest meanwhile
            fence = None
    metrics.count_wait(task.source, time.monotonic() - started)
    return permit


async def _told(task: PageTask, source: Source, error: FetchError, session: str | None, hands: Hands) -> Stop | None:
    """Tell the fleet of a fault that tends to stay; returns what keeps the page from being called again."""
    if error.code not in source.sticky_outcomes or not isinstance(error, TransientError):
        return None
    return await hands.circuits.fault(task, _masked(error, session, hands))


def _at_rest(task: PageTask, stop: Stop, attempts: Attempts, hands: Hands) -> PageResult:
    """The result of a page that must not be called: it waits, or is dead because its shop is given up."""
    if stop.given_up:
        outcome = stop.reason.partition(":")[0]
        return _result(task, hands, attempts, state="dead", outcome=outcome, reason=stop.reason)
    delay = after_stop(stop, random.random())
    return _result(task, hands, attempts, state="ready", reason=f"rests: {stop.reason}", delay=delay)


async def _call(
    task: PageTask, source: Source, permit: Permit, session: str | None, attempts: Attempts, hands: Hands
) -> tuple[HttpResponse, FetchedPage]:
    """One paid call; the permit goes back with what it showed, whatever happens."""
    attempts.stop = None
    ok = throttled = False
    outcome = "unknown"
    response: HttpResponse | None = None
    started = time.monotonic()
    try:
        request = source.request(task, permit.credential, hands.settings, hands.clock.now(), session)
        response = _without_secrets(await hands.client.fetch(request), hands.sent_secrets, session)
        fetched = source.decode(response, task, hands.clock.now())
        ok, outcome = True, "200"
        return response, fetched
    except FetchError as error:
        error.body = response.body if response else None
        throttled, outcome = isinstance(error, ThrottledError), error.code
        attempts.stop = await _told(task, source, error, session, hands)
        if isinstance(error, CredentialParkedError | SourceStoppedError):
            # Before the permit goes back: whoever had it next would be refused as well.
            await _park(task, source, permit.credential, error, session, hands)
        elif isinstance(error, BannedError):
            scope = None if error.whole_source else permit.credential.name
            hands.limiter.ban(task.source, scope, error.seconds, _masked(error, session, hands))
        raise
    finally:
        permit.release(ok=ok, throttled=throttled)
        metrics.count_call(task.source, outcome, time.monotonic() - started)


async def _park(
    task: PageTask, source: Source, credential: Credential, error: FetchError, session: str | None, hands: Hands
) -> None:
    """Stop the whole fleet from calling with this credential, or with any credential of the source."""
    names = [credential.name]
    if isinstance(error, SourceStoppedError):
        names = [each.name for each in source.credentials(hands.settings)]
    await hands.parking.park(task.source, names, _masked(error, session, hands))


async def _react(
    task: PageTask, error: FetchError, attempts: Attempts, session: str | None, hands: Hands
) -> PageResult | float:
    """Decide and act on an error; returns the page's result, or the pause after which it is to be called again."""
    reason = _masked(error, session, hands)
    if isinstance(error, EarlyWindowError) and attempts.tries < hands.settings.max_tries:
        put_back = _result(task, hands, attempts, state="ready", outcome=error.code, reason=reason, delay=0)
        return msgspec.structs.replace(put_back, window_end=_window_end(error, task, hands))
    decision = decide(
        error, tries=attempts.tries, throttles=attempts.throttles, settings=hands.settings, random=random.random()
    )
    match obey(decision, attempts.stop, random.random()):
        case WaitHere(delay):
            return delay
        case PutBack(delay):
            return _result(task, hands, attempts, state="ready", outcome=error.code, reason=reason, delay=delay)
        case Dead():
            outcome = TOO_FAR if isinstance(error, WindowTooLargeError) else error.code
            body = _archived(error.body, hands) if error.body else None
            return _result(task, hands, attempts, state="dead", outcome=outcome, reason=reason, body=body)
        case Hold() if session is not None:
            reason = f"{NEEDS_AUTHORISATION}: {reason}"
            if not await hands.sessions.refuse(task.shop_id, session, reason):
                return 0.0  # the shop has got another session meanwhile
            return _result(task, hands, attempts, state="held", outcome=error.code, reason=reason)
        case ObeyBan():
            return 0.0
        case FailShop() | Hold():
            return _result(task, hands, attempts, state="refused", outcome=error.code, reason=reason)
        case _:  # the credential, or every credential of the source, is parked; others carry on with the page
            if task.credential is None:
                return 0.0
            return _result(task, hands, attempts, state="ready", outcome=error.code, reason=reason, delay=0)


def _window_end(error: EarlyWindowError, task: PageTask, hands: Hands) -> datetime:
    """Where a window has to end by the API's clock."""
    rules = source_named(task.source).windows(hands.settings)
    return (error.now - (rules.margin if rules else timedelta())).replace(microsecond=0)


def _result(
    task: PageTask,
    hands: Hands,
    attempts: Attempts,
    *,
    state: str,
    outcome: str | None = None,
    reason: str | None = None,
    delay: float | None = None,
    fetched: FetchedPage | None = None,
    body: bytes | None = None,
) -> PageResult:
    now, prices = hands.clock.now(), source_named(task.source).prices(hands.settings)
    result = PageResult(
        task=task,
        state=state,
        at=now,
        tries=attempts.tries,
        outcome=outcome,
        reason=reason,
        due_at=None if delay is None else now + timedelta(seconds=delay),
        body=body,
        calls=[
            Calls(credential, code, count, prices.of(code) * count)
            for (credential, code), count in attempts.calls.items()
        ],
        reserved=attempts.reserved,
        price=prices.highest,
    )
    return result if fetched is None else with_page(result, fetched)


def _masked(error: FetchError, session: str | None, hands: Hands) -> str:
    """The error's text without any secret that the call may have carried."""
    secrets = (*hands.settings.secrets, *hands.sent_secrets)
    return redact(str(error), secrets if session is None else (*secrets, session))


def _without_secrets(response: HttpResponse, secrets: tuple[str, ...], session: str | None) -> HttpResponse:
    """A server that echoes what it was sent must not plant it in the store, the archive or a message."""
    body = redact_bytes(response.body, secrets)
    if session is not None:  # on its own: what is prepared for the other secrets serves every shop
        body = redact_bytes(body, (session,))
    return HttpResponse(response.status, response.headers, body)


def _archived(body: bytes, hands: Hands) -> bytes | None:
    return compress(body) if hands.settings.archive else None
