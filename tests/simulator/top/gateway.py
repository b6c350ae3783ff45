"""The gateway as its clients see it: decides, renders and books every call."""

from hashlib import blake2b
from random import Random

from tests.simulator.chance import draws_of, latency_of
from tests.simulator.clock import http_date
from tests.simulator.faults import error_reply, fault_reply
from tests.simulator.script import Outcome
from tests.simulator.server import JSON_TYPE, Reply, Request
from tests.simulator.server import parse_query as parse_form
from tests.simulator.top.answers import JSON_TYPE as TOP_JSON
from tests.simulator.top.answers import XML_TYPE, error_answer, page_body, style_of
from tests.simulator.top.bans import Ban, BanOrder
from tests.simulator.top.errors import SHAPES, STATUSES, WHOLE, TopError
from tests.simulator.top.protocol import Query, authenticate, parse_query
from tests.simulator.top.sessions import Grant
from tests.simulator.top.switches import TopSwitches
from tests.simulator.top.world import TopRule, World

PATH = "/router/rest"
_MAX_REMEMBERED_SIGNS = 100_000
_OK = TopRule(outcome="ok")


class Call:
    """One accepted call: its fate is decided on arrival, its page rendered when its time has come."""

    __slots__ = (
        "_gateway",
        "ban",
        "delay",
        "draws",
        "error",
        "goods",
        "holds",
        "nick",
        "nth",
        "number",
        "query",
        "rows",
        "rule",
        "style",
    )

    def __init__(self, gateway: "Gateway", number: int, nth: int, params: dict[str, str]) -> None:
        self._gateway = gateway
        self.number = number
        self.nth = nth
        self.style = style_of(params)
        self.delay = 0.0
        self.holds = False
        self.nick: str | None = None
        self.goods = ""
        self.query: Query | None = None
        self.error: TopError | None = None
        self.ban: Ban | None = None
        self.rule = _OK
        self.draws: tuple[float, ...] = ()
        self.rows = 0

    def render(self) -> Reply:
        """Build the reply."""
        return self._gateway.render(self)

    def settle(self, delivered: bool) -> None:
        """Book the fate of the call."""
        self._gateway.settle(self, delivered)


class Gateway:
    """Answers the one address of the platform."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._signs: dict[tuple[str, str], int] = {}

    # -- arrival ---------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Call:
        """Decide the fate of a request."""
        world = self.world
        params = dict(request.query)
        if request.body:
            params |= parse_form(request.body.decode("utf-8", "replace"))
        call = Call(self, world.ledger.arrive(), request.nth, params)
        call.nick = world.sessions.owner(params.get("session", ""))
        if call.nick is not None:
            world.ledger.shop(call.nick).calls += 1
        try:
            if request.method not in {"GET", "POST"}:
                raise TopError(9)
            switches = world.board.everywhere
            now = world.clock.real() if switches.timestamps == "real" else world.clock.now()
            grant = authenticate(params, switches, world.sessions, now)
            self._limit(call, grant, switches)
            self._check_replay(params, switches)
            world.sessions.use(grant.owner)
            call.query = parse_query(params, world.board.of(grant.owner))
        except TopError as error:
            call.error = error
        else:
            self._admit(call, grant, call.query, params.get("session", ""))
        return call

    def _limit(self, call: Call, grant: Grant, switches: TopSwitches) -> None:
        """Refuse a call of an app that is banned, and begin a ban where it calls too fast."""
        bans, now = self.world.bans, self.world.clock.now()
        call.ban = bans.arrive(grant.app, now)
        if call.ban is None and switches.qps and self.world.ledger.rate.now > switches.qps:
            bans.order(BanOrder(scope="app_api", seconds=switches.qps_ban, app=grant.app), now)
            call.ban = bans.arrive(grant.app, now)
        if call.ban is not None:
            self.world.ledger.total.during_ban += 1
            self.world.ledger.shop(grant.owner).during_ban += 1
            raise call.ban.refuse(now)

    def _check_replay(self, params: dict[str, str], switches: TopSwitches) -> None:
        if not switches.replay:
            return
        key = (params["sign"], params["timestamp"])
        self._signs[key] = self._signs.pop(key, 0) + 1
        if len(self._signs) > _MAX_REMEMBERED_SIGNS:
            del self._signs[next(iter(self._signs))]
        if self._signs[key] > switches.replay:
            raise TopError(15, "isv.request-replay-error", "请求重放")

    def _admit(self, call: Call, grant: Grant, query: Query, session: str) -> None:
        """Let script and chance decide over a call that is in order."""
        world, nick = self.world, grant.owner
        switches = world.board.of(nick)
        call.goods = grant.goods
        key = hash((nick, query))
        world.ledger.attempts[key] += 1
        call.draws = draws_of(f"{world.seed}|{nick}|{query}|{world.ledger.attempts[key]}")
        call.rule = world.script.match(nick, query.page, session, call.draws[3]) or self._by_chance(call, switches)
        rule = call.rule
        call.error = rule.error(call.draws[1])
        call.delay = latency_of(switches.latency, switches.latency_tail, call.draws[2])
        if rule.outcome == "slow" and rule.seconds is None:
            call.delay += switches.slow_seconds
        elif rule.outcome != "drip":
            call.delay += rule.seconds or 0.0

    def _by_chance(self, call: Call, switches: TopSwitches) -> TopRule:
        draw = call.draws[0]
        for outcome, probability in switches.faults.items():
            if draw < probability:
                return TopRule(outcome=outcome)
            draw -= probability
        return _OK

    # -- answer ----------------------------------------------------------------------------------------------------

    def render(self, call: Call) -> Reply:
        """Build the reply to a call whose time has come."""
        switches = self.world.board.everywhere
        rule = call.rule
        if call.error is not None:
            style = call.style._replace(xml=True) if rule.xml else call.style
            reply = error_answer(call.error, self._request_id(call, switches), style)
        elif rule.outcome in STATUSES or call.query is None:
            reply = error_reply(int(rule.outcome), rule.channel or "html", rule.retry_after or 0.0)
        else:
            reply = fault_reply(Outcome(rule.outcome, rule=rule), self._page(call, call.query))
            if reply.content_type == JSON_TYPE:
                reply.content_type = XML_TYPE if call.style.xml else TOP_JSON
        clock = self.world.clock
        reply.headers.append((b"Date", http_date(clock.real() if switches.timestamps == "real" else clock.now())))
        if switches.keepalive_requests and call.nth % switches.keepalive_requests == 0:
            reply.close_after = "announced" if switches.keepalive_announce else "silent"
        return reply

    def _page(self, call: Call, query: Query) -> bytes:
        world, rule = self.world, call.rule
        switches = world.board.of(call.nick or "")
        warehouse = world.sellers[call.goods]
        ties = Random(call.number) if switches.ties == "random" else None
        total, rows = warehouse.page(query.selection, (query.page - 1) * query.size, query.size, ties)
        if rule.outcome == "empty_page":
            rows = []
        elif rule.outcome == "short":
            rows = rows[: rule.rows]
        call.rows = len(rows)
        row_of, raw = warehouse.goods.row, switches.raw_control
        full = (row_of(row, raw=raw) for row in rows)
        items = [{name: row[name] for name in query.fields if name in row} for row in full]
        body = page_body(items, total, self._request_id(call, switches), call.style, switches)
        if SHAPES[rule.outcome] == "200":
            self._churn(call, switches)
        return body

    def _churn(self, call: Call, switches: TopSwitches) -> None:
        world = self.world
        world.pages[call.goods] += 1
        world.churn(call.goods, switches, world.pages[call.goods])

    def _request_id(self, call: Call, switches: TopSwitches) -> str:
        text = blake2b(f"request|{self.world.seed}|{call.number}".encode(), digest_size=6)
        share = int.from_bytes(text.digest(), "little") / 2**48
        return text.hexdigest() if share < switches.request_id else ""

    def settle(self, call: Call, delivered: bool) -> None:
        """Book the fate of a call."""
        ledger, outcome = self.world.ledger, call.rule.outcome
        if call.ban is not None and delivered:
            call.ban.learned(ledger.slots.now)
        ledger.slots.leave()
        fate = call.error.name if call.error else SHAPES.get(outcome, outcome)
        good = delivered and fate == "200"
        key = hash((call.nick, call.query))
        whole = good and outcome in WHOLE
        if whole:
            ledger.deliveries[key] += 1
        for tally in [ledger.total] + ([ledger.shop(call.nick)] if call.nick is not None else []):
            tally.outcomes[fate if delivered else "abandoned"] += 1
            tally.pages += good
            tally.rows += call.rows * good
            tally.repeated += whole and ledger.deliveries[key] > 1
        if outcome != "ok":
            ledger.injected[outcome] += 1
