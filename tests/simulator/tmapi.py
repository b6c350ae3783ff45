"""TMAPI's 1688 "get shop items" as its clients see it."""

from tests.simulator.catalogue import Shop
from tests.simulator.chance import draws_of, latency_of
from tests.simulator.faults import error_reply, fault_reply, gzipped
from tests.simulator.journal import Answer
from tests.simulator.ledger import ATTEMPT, CALL, DELIVERY, Account, PageTally, ShopTally
from tests.simulator.listing import SORTS, BadQueryError, Selection, cents
from tests.simulator.market import Market
from tests.simulator.outcomes import CODES, WHOLE
from tests.simulator.pages import PageRenderer, Query
from tests.simulator.script import OK, Outcome, Rule, by_probability, resolve_channel
from tests.simulator.server import Reply, Request
from tests.simulator.switches import Switches

PATH = "/1688/shop/items"


def parse_query(values: dict[str, str], switches: Switches) -> Query:
    """Read the parameters; BadQueryError names the one the API refuses."""
    shop = values.get("member_id", "")
    if not shop:
        raise BadQueryError("member_id")
    page = _positive(values.get("page", "1"))
    if page is None:
        if switches.bad_page == "422":
            raise BadQueryError("page")
        page = 1
    asked = _positive(values.get("page_size", "20"))
    if asked is None or (asked > switches.page_size_max and switches.page_size_over == "422"):
        raise BadQueryError("page_size")
    size = asked if switches.page_size_over == "serve" else min(asked, switches.page_size_max)
    sort_echo = values.get("sort", "default")
    if sort_echo not in SORTS and switches.unknown_sort == "422":
        raise BadQueryError("sort")
    sort = sort_echo if sort_echo in SORTS else "default"
    get = values.get
    cents(get("price_start", ""), "price_start")
    cents(get("price_end", ""), "price_end")
    selection = Selection(sort, get("shop_cat_id", ""), get("price_start", ""), get("price_end", ""))
    return Query(shop, page, size, asked, selection, sort_echo)


def _positive(text: str) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return number or None


def _extra_delay(outcome: Outcome, switches: Switches) -> float:
    """Return the seconds an outcome takes longer than its latency; a drip spends its seconds on the wire."""
    if outcome.name == "drip":
        return 0.0
    if outcome.rule.seconds is not None:
        return outcome.rule.seconds
    return {"499": switches.delay_499, "slow": switches.slow_seconds}.get(outcome.name, 0.0)


class Call:
    """One accepted request: its fate is decided on arrival, its page rendered when its time has come."""

    __slots__ = (
        "_api",
        "account",
        "delay",
        "draws",
        "entry",
        "gzip",
        "holds",
        "nth",
        "number",
        "outcome",
        "pages",
        "query",
        "shop",
        "slot",
        "tally",
    )

    def __init__(self, api: "Tmapi", account: Account, request: Request) -> None:
        self._api = api
        self.account = account
        self.nth = request.nth
        self.number = api.market.ledger.number
        self.gzip = b"gzip" in request.headers.get(b"accept-encoding", b"")
        self.delay = 0.0
        self.holds = False
        self.outcome = OK
        self.slot = False
        self.query: Query | None = None
        self.shop: Shop | None = None
        self.tally: ShopTally | None = None
        self.pages: PageTally | None = None
        self.draws: tuple[float, ...] = ()
        self.entry: Answer | None = None

    def render(self) -> Reply:
        """Build the reply."""
        return self._api.render(self)

    def settle(self, delivered: bool) -> None:
        """Book the fate of the call and free its slot."""
        self._api.settle(self, delivered)


class Tmapi:
    """Decides, renders and books the calls of one endpoint on a market."""

    def __init__(self, market: Market, cache_bytes: int) -> None:
        self.market = market
        self._pages = PageRenderer(market, cache_bytes)

    def warm(self) -> None:
        """Render the pages of a plain crawl beforehand, so that the first answers are as fast as the later ones."""
        self._pages.warm(self.market.board.everywhere.page_size_max)

    # -- arrival ---------------------------------------------------------------------------------------------------

    def handle(self, request: Request) -> Call:
        """Decide the fate of a request."""
        switches = self.market.board.everywhere
        token = request.query.get("apiToken", "")
        account = self.market.ledger.arrive(token)
        call = Call(self, account, request)
        refusal = self._refuse(token, account, switches)
        query = self._identify(call, request, switches)
        if refusal is not None:
            call.outcome = refusal
        elif isinstance(query, Outcome):
            call.outcome = query
        else:
            self._admit(call, query, token)
        self._bill(call, switches)
        return call

    def _refuse(self, token: str, account: Account, switches: Switches) -> Outcome | None:
        """Apply what concerns the token alone: is it known, is there a free slot, is there money."""
        if not token or (switches.tokens and token not in switches.tokens):
            if switches.token_refusal == "body":
                return Outcome("401", "body")
            return Outcome(switches.token_refusal)
        gate = switches.gates.get(token, switches.gate)
        if gate and account.slots.now >= gate:
            account.over_gate += 1
            self.market.ledger.over_gate += 1
            channel = resolve_channel("503", None, switches.gate_channel, self.market.ledger.number % 4 / 4)
            return Outcome("503", channel, Rule(outcome="503", retry_after=switches.retry_after))
        if account.left(switches.balance) == 0:
            channel = resolve_channel("439", None, switches.balance_channel, self.market.ledger.number % 4 / 4)
            return Outcome("439", channel)
        return None

    def _identify(self, call: Call, request: Request, switches: Switches) -> Query | Outcome:
        """Read the parameters and count the call for its shop and page."""
        wrong = Outcome("422", resolve_channel("422", None, switches.channel, 0.0))
        key = request.query.get("member_id", "")
        try:
            query = parse_query(request.query, self.market.board.of(key))
        except BadQueryError:
            return wrong
        shop = self.market.shops.get(query.shop)
        call.query, call.shop = query, shop
        if shop is None:
            return wrong if switches.unknown_shop == "422" else query
        call.tally = self.market.ledger.shop(query.shop)
        call.tally.calls += 1
        call.pages = call.tally.pages((*query.selection, query.size))
        call.pages.add(query.page, CALL)
        return query

    def _admit(self, call: Call, query: Query, token: str) -> None:
        """Take a slot, then let script and chance decide."""
        call.slot = True
        call.account.slots.enter()
        self.market.ledger.slots.enter()
        switches = self.market.board.of(query.shop)
        attempt = call.pages.add(query.page, ATTEMPT) if call.pages else 0
        call.draws = self._draw(query, attempt or -call.number)
        call.outcome = self._decide(call, query, token, switches)
        if call.outcome.name not in {"401", "403", "439"}:
            call.account.broke = call.account.refused = False
        call.holds = switches.hold_after_disconnect
        call.delay = latency_of(switches.latency, switches.latency_tail, call.draws[2])
        call.delay += _extra_delay(call.outcome, switches)

    def _draw(self, query: Query, attempt: int) -> tuple[float, ...]:
        """Return uniform draws that depend on seed, shop, page and attempt only, not on the order of arrival."""
        return draws_of(f"{self.market.seed}|{query.shop}|{query.page}|{query.selection}|{attempt}")

    def _decide(self, call: Call, query: Query, token: str, switches: Switches) -> Outcome:
        rule = self.market.script.match(query.shop, query.page, token, call.draws[3])
        if rule is not None:
            return Outcome(
                rule.outcome, resolve_channel(rule.outcome, rule.channel, switches.channel, call.draws[1]), rule
            )
        if switches.sticky_417 and self.market.is_sticky(query.shop, switches.sticky_417):
            return Outcome("417", resolve_channel("417", None, switches.channel, call.draws[1]))
        if switches.beyond_end == "422" and call.shop and query.page > self._pages.last_page(call.shop, query):
            return Outcome("422", resolve_channel("422", None, switches.channel, call.draws[1]))
        return by_probability(switches, call.draws[0], call.draws[1]) if switches.faults else OK

    def _bill(self, call: Call, switches: Switches) -> None:
        """Charge what the vendor charges; a refused token and an empty purse never cost anything."""
        if call.outcome.name in {"401", "403", "439"}:
            return
        if switches.bill_failures or call.outcome.name not in CODES:
            self.market.ledger.bill(call.account)

    # -- answer ----------------------------------------------------------------------------------------------------

    def render(self, call: Call) -> Reply:
        """Build the reply to a call whose time has come."""
        switches = self.market.board.everywhere
        outcome, rule = call.outcome, call.outcome.rule
        if outcome.name in CODES or call.query is None:
            retry_after = switches.retry_after if rule.retry_after is None else rule.retry_after
            honest = outcome.name in {"429", "503"} or rule.retry_after is not None
            reply = error_reply(int(outcome.name), outcome.channel, retry_after if honest else 0.0)
        else:
            reply = fault_reply(outcome, self._page(call, call.query))
        if switches.gzip and call.gzip:
            reply = gzipped(reply)
        if switches.keepalive_requests and call.nth % switches.keepalive_requests == 0:
            reply.close_after = "announced" if switches.keepalive_announce else "silent"
        return reply

    def _page(self, call: Call, query: Query) -> bytes:
        switches = self.market.board.of(query.shop)
        number = self._begin_entry(call, query)
        page = self._pages.render(query, call.shop, switches, call.outcome, call.draws, number)
        if call.shop is not None:
            if call.entry is not None:
                call.entry.rows, call.entry.total = page.rows, page.total
                call.entry.versions = [call.shop.version(row) for row in page.rows]
            self.market.churn(call.shop, switches, call.draws, call.number)
            if switches.reorder:
                self.market.reorder(call.shop, query.selection, switches.reorder, call.draws)
        return page.body

    def _begin_entry(self, call: Call, query: Query) -> int:
        """Begin an entry in the journal, if one is kept, and return its number, else 0."""
        if call.shop is None or not self.market.board.everywhere.journal:
            return 0
        sort = query.selection.sort if query.selection == (query.selection.sort, "", "", "") else ""
        call.entry = self.market.journal.answer(call.number, call.shop.number, query.page, query.size, sort)
        return call.entry.number

    def settle(self, call: Call, delivered: bool) -> None:
        """Book the fate of a call."""
        ledger, outcome = self.market.ledger, call.outcome
        if call.slot:
            call.account.slots.leave()
            ledger.slots.leave()
        effective = outcome.effective if delivered else "abandoned"
        ledger.outcomes[effective] += 1
        if outcome.name != "ok":
            ledger.injected[outcome.name] += 1
        if call.tally is not None:
            call.tally.outcomes[effective] += 1
        if not delivered:
            return
        if call.entry is not None:
            call.entry.delivered = effective == "200"
        if outcome.name == "439":
            call.account.broke = True
        elif outcome.name in {"401", "403"}:
            call.account.refused = True
        elif outcome.name in WHOLE and call.pages and call.query and call.pages.add(call.query.page, DELIVERY) > 1:
            ledger.repeated += 1
