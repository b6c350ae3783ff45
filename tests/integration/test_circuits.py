"""Circuits in a real Redis: several processes against a plain model, races, moving time, and what an operator does."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from models.circuits import WHOLE_SOURCE, Circuit, circuit_key, open_circuits, open_key, reset_circuits
from models.messages import PageTask
from models.settings import Settings, load_settings
from tests.servers import RedisServer
from worker.circuit import Stop
from worker.circuits import AtRest, Circuits

SOURCE = "tmapi"
ANSWERS, TRIES, REST, LEASE = 4, 3, 1_000.0, 120_000.0
SHOPS = st.integers(1, 2)
PROCESSES = st.integers(0, 2)


def rules(**more: Any) -> Settings:
    given = {"sticky_answers": ANSWERS, "sticky_share": 0.75, "sticky_rest": REST, "max_tries": TRIES}
    return load_settings(**({**given, "sticky_source_answers": 0, "total_timeout": 90} | more))


def task(shop: int, page: int = 1) -> PageTask:
    return PageTask(SOURCE, f"shop-{shop}", page, shop * 1_000 + page, 1, shop, shop, 1)


async def asked(circuits: Circuits, page: PageTask) -> Stop | None:
    try:
        await circuits.enter(page)
    except AtRest as rest:
        return rest.stop
    return None


async def flush(redis: Redis) -> None:
    await redis.flushall()


async def pass_time(redis: Redis, seconds: float) -> None:
    """Move the ends of all rests and probes towards the past."""
    for key in await redis.keys(circuit_key(SOURCE, "*")):
        circuit = msgspec.json.decode(await redis.get(key) or b"{}", type=Circuit)
        until, ends = (max(1, round(moment - seconds * 1000)) for moment in (circuit.until, circuit.probe_ends))
        moved = msgspec.structs.replace(circuit, until=until, probe_ends=ends)
        await redis.set(key, msgspec.json.encode(moved), keepttl=True)


async def fail_until_at_rest(circuits: Circuits, shop: int) -> Stop:
    for page in range(1, 100):
        stop = await circuits.fault(task(shop, page), "417: no data")
        if stop is not None:
            return stop
    raise AssertionError("it never came to rest")


async def test_many_faults_at_once_from_several_processes_are_all_counted(redis: Redis) -> None:
    processes = [Circuits(redis, rules(sticky_answers=60), process=name) for name in "abc"]
    pages = [(each, task(1, page)) for page in range(20) for each in processes]
    stops = await asyncio.gather(*(each.fault(page, "417: no data") for each, page in pages[:59]))
    assert stops == [None] * 59
    each, last = pages[59]
    assert await each.fault(last, "417: no data") is not None


async def test_a_page_of_a_resting_shop_is_stopped_wherever_it_comes_up(redis: Redis) -> None:
    first, second = (Circuits(redis, rules(), process=name) for name in "ab")
    stop = await fail_until_at_rest(first, 1)
    assert REST - 10 < stop.seconds <= REST * 1.25
    second.start()
    async with asyncio.timeout(10):
        while second.admits(task(1)):  # noqa: ASYNC110 - what is awaited happens in Redis
            await asyncio.sleep(0.01)
    held_up = await asked(second, task(1, 50))
    assert held_up is not None
    assert held_up.seconds > REST - 10
    assert await asked(second, task(2)) is None
    await second.stop()


async def test_only_one_of_many_that_ask_at_once_is_the_probe(redis: Redis) -> None:
    processes = [Circuits(redis, rules(), process=name) for name in "abc"]
    for each in processes:
        await each.fault(task(1), "417: no data")
    await fail_until_at_rest(processes[0], 1)
    for each in processes:
        assert await each.fault(task(1), "417: no data") is not None
    await pass_time(redis, 2 * REST)
    pages = [(each, task(1, 10 * page)) for page in range(10) for each in processes]
    answers = await asyncio.gather(*(asked(each, page) for each, page in pages))
    assert answers.count(None) == 1
    (circuit,) = await open_circuits(redis, SOURCE)
    assert circuit.state == "probing"
    prober, page = pages[answers.index(None)]
    await prober.good(page)
    assert await open_circuits(redis, SOURCE) == []
    assert all([await asked(each, page) is None for each, page in pages])


async def test_a_probe_that_ends_without_an_answer_makes_room_for_the_next(redis: Redis) -> None:
    circuits = Circuits(redis, rules(), process="a")
    await fail_until_at_rest(circuits, 1)
    await pass_time(redis, 2 * REST)
    assert await asked(circuits, task(1, 50)) is None
    assert await asked(circuits, task(1, 51)) is not None
    circuits.let_go(task(1, 50))
    await circuits.stop()
    assert await asked(circuits, task(1, 51)) is None


async def test_a_reset_is_obeyed_by_whoever_believes_in_the_rest_and_leaves_others_alone(redis: Redis) -> None:
    circuits = Circuits(redis, rules(), process="a")
    for shop in (1, 2):
        await fail_until_at_rest(circuits, shop)
    (shown,) = await reset_circuits(redis, SOURCE, "shop-1")
    assert (shown.shop, shown.shop_crawl, shown.level, shown.share) == ("shop-1", 1, 1, 1.0)
    assert await asked(circuits, task(1, 70)) is None
    assert await asked(circuits, task(2, 70)) is not None
    assert len(await reset_circuits(redis, SOURCE)) == 1
    assert not await redis.exists(open_key(SOURCE))


async def test_an_outage_of_the_source_stops_every_shop_and_a_healthy_answer_of_any_ends_it(redis: Redis) -> None:
    given = {"sticky_source_answers": 6, "sticky_source_shops": 3, "sticky_answers": 0}
    circuits = Circuits(redis, rules(**given), process="a")
    for page in range(10):
        assert await circuits.fault(task(1 + page % 2, page), "417: no data") is None, "of two shops only"
    stop = await circuits.fault(task(3), "417: no data")
    assert stop is not None
    assert stop.whole_source
    assert await asked(circuits, task(9)) is not None
    (shown,) = await open_circuits(redis, SOURCE)
    assert (shown.shop, shown.shop_crawl) == (None, None)
    await pass_time(redis, 2 * REST)
    assert await asked(circuits, task(9)) is None
    await circuits.good(task(9))
    assert await asked(circuits, task(1, 80)) is None


async def test_without_redis_every_page_goes_on(redis_server: RedisServer, redis_url: str) -> None:
    async with Redis.from_url(redis_url, socket_timeout=1, socket_connect_timeout=1) as redis:
        circuits = Circuits(redis, rules(), process="a")
        await fail_until_at_rest(circuits, 1)
        redis_server.stop()
        assert await asked(circuits, task(1, 50)) is None
        assert circuits.admits(task(1, 50))
        assert await circuits.fault(task(1, 51), "417: no data") is None


@dataclass
class Shop:
    """The plain model of one shop: what its newest answers were, and how it rests."""

    answers: list[bool] = field(default_factory=list)
    level: int = 0
    resting: bool = False
    probe: tuple[int, int] | None = None
    """(process, page) whose answer counts."""
    late: bool = False
    """The probe has taken too long: another page may take its place, but until then its answer counts."""
    given_up: bool = False

    @property
    def state(self) -> str:
        if self.given_up:
            return "given up"
        return "resting" if self.resting else "probing" if self.probe and not self.late else "due"

    def rest(self) -> None:
        self.given_up = self.level == TRIES
        self.level += not self.given_up
        self.resting, self.probe = True, None


def machine(url: str) -> type[RuleBasedStateMachine]:
    class Fleet(RuleBasedStateMachine):
        """Three processes fetch pages of two shops; whoever may call does, and answers come in any order."""

        def __init__(self) -> None:
            super().__init__()
            self.runner = asyncio.Runner()
            self.redis = Redis.from_url(url)
            self.runner.run(flush(self.redis))
            self.fleet = [Circuits(self.redis, rules(), process=str(number)) for number in range(3)]
            self.shops = {number: Shop() for number in range(1, 3)}
            self.goods: dict[tuple[int, int], int] = {}
            self.out: list[tuple[int, int, int]] = []
            """(process, shop, page) of the calls in flight."""
            self.pages = 0

        def teardown(self) -> None:
            self.runner.run(self.redis.aclose())
            self.runner.close()

        @rule(process=PROCESSES, shop=SHOPS)
        def ask(self, process: int, shop: int) -> None:
            self.pages += 1
            model, page = self.shops[shop], self.pages
            knows = not self.fleet[process].admits(task(shop, page))
            stop = self.runner.run(asked(self.fleet[process], task(shop, page)))
            if knows and model.level:
                may = model.state == "due"
                assert (stop is None) == may
                if may:
                    model.probe, model.late = (process, page), False
            else:
                assert stop is None
            if stop is None:
                self.out.append((process, shop, page))
            elif stop.given_up:
                assert model.given_up

        @rule(process=PROCESSES, shop=SHOPS)
        def ask_and_fail(self, process: int, shop: int) -> None:
            before = len(self.out)
            self.ask(process, shop)
            if len(self.out) > before:
                self.answer_to(before, True)

        @rule(data=st.data(), fails=st.booleans())
        def answer(self, data: st.DataObject, fails: bool) -> None:
            if self.out:
                self.answer_to(data.draw(st.integers(0, len(self.out) - 1)), fails)

        def answer_to(self, index: int, fails: bool) -> None:
            process, shop, page = self.out.pop(index)
            model, circuits = self.shops[shop], self.fleet[process]
            is_probe = model.probe == (process, page)
            if not fails:
                self.runner.run(circuits.good(task(shop, page)))
                if (process, shop) in self.goods:
                    self.goods[process, shop] += 1
                if is_probe:
                    self.shops[shop] = Shop()
                return
            stop = self.runner.run(circuits.fault(task(shop, page), "417: no data"))
            goods, self.goods[process, shop] = self.goods.get((process, shop), 0), 0
            if is_probe:
                model.rest()
            elif not model.level:
                model.answers = [*model.answers, *[True] * goods, False][-2 * ANSWERS :]
                failed = model.answers.count(False)
                if len(model.answers) >= ANSWERS and failed / len(model.answers) >= 0.75:
                    model.rest()
            assert (stop is None) == (not model.level or model.state == "due")

        @rule(data=st.data())
        def die(self, data: st.DataObject) -> None:
            """A call ends without an answer that says anything."""
            if self.out:
                process, shop, page = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
                self.runner.run(self._let_go(process, task(shop, page)))
                if self.shops[shop].probe == (process, page):
                    self.shops[shop].probe = None

        async def _let_go(self, process: int, page: PageTask) -> None:
            self.fleet[process].let_go(page)
            await self.fleet[process].stop()

        @rule()
        def rest_over(self) -> None:
            self.runner.run(pass_time(self.redis, 100 * REST))
            for model in self.shops.values():
                model.resting, model.late = model.given_up, True

        @rule(shop=SHOPS)
        def reset(self, shop: int) -> None:
            found = self.runner.run(reset_circuits(self.redis, SOURCE, f"shop-{shop}"))
            assert bool(found) == bool(self.shops[shop].level)
            if found:
                self.shops[shop] = Shop()

        @rule(shop=SHOPS, rests=st.integers(1, TRIES + 1))
        def fail_through_rests(self, shop: int, rests: int) -> None:
            """Nothing but failures: it takes long to come here by chance."""
            for _ in range(ANSWERS):
                self.ask_and_fail(0, shop)
            for _ in range(rests):
                self.rest_over()
                self.ask_and_fail(0, shop)
            self.rest_over()
            for _ in range(2):
                self.ask(0, shop)

        @rule()
        def flush(self) -> None:
            self.runner.run(flush(self.redis))
            self.shops = {number: Shop() for number in self.shops}

        @invariant()
        def redis_says_what_the_model_says(self) -> None:
            shown = {each.shop_crawl: each for each in self.runner.run(open_circuits(self.redis, SOURCE))}
            assert shown.keys() == {number for number, model in self.shops.items() if model.level}
            for number, circuit in shown.items():
                model = self.shops[number or WHOLE_SOURCE]
                assert (circuit.level, circuit.state) == (model.level, model.state)

    return Fleet


def test_three_processes_do_what_a_plain_model_says(redis_url: str) -> None:
    chosen = settings(max_examples=50, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(machine(redis_url), settings=chosen)
