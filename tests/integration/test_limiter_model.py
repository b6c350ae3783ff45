"""The limiter's script against a plain model of it, with crashes, lost answers, a flushed Redis and moving time."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from models import fleet
from models.source import Limits
from tests.servers import RedisServer
from worker.limiter_call import Answer, Call, LaneAnswer, LaneCall, read_answer, script_arguments, script_text

LEASE, GRACE = 10_000, 2_500
PROCESSES = st.sampled_from(["a", "b", "c", "d"])
SMALL = st.integers(0, 30)
DAY = 86_400_000
BOUNDS = st.sampled_from(
    [
        Limits(rate=0, start=4, floor=1, ceiling=60),
        Limits(rate=0, start=8, floor=8, ceiling=8),
        Limits(rate=50, start=6, floor=2, ceiling=40),
        Limits(rate=3, start=4, floor=1, ceiling=60),
        Limits(rate=0, start=8, floor=1, ceiling=60, per_day=60),
        Limits(rate=50, start=8, floor=8, ceiling=8, per_day=25, day_shift=8 * 3600),
    ]
)
ORDERS: dict[str, dict[str, float]] = {
    "concurrency=10": {"floor": 10, "ceiling": 10},
    "concurrency=3 rate=7.5": {"floor": 3, "ceiling": 3, "rate": 7.5},
    "rate=0": {"rate": 0},
    "floor=5 ceiling=20": {"floor": 5, "ceiling": 20},
}


class State(msgspec.Struct):
    """What is remembered about a credential; `knee` is the highest limit known to be good."""

    born: float
    limit: int
    knee: int = 0
    calm: int = 0
    step: int = 1
    cut_at: float = 0
    cut_from: int = 0
    hits: int = 0
    slot: float = 0
    frozen_until: float = 0
    day: int = 0
    used: int = 0


class Holder(msgspec.Struct):
    """What one process holds; times in ms."""

    quota: int
    waiting: int
    deadline: float
    calls: int = 0

    @property
    def demand(self) -> int:
        return self.quota + self.waiting


class Model:
    """The script in plain Python for one credential."""

    def __init__(self) -> None:
        self.claims: dict[str, tuple[int, str]] = {}
        self.holders: dict[str, Holder] = {}
        self.state: State | None = None
        self.reason = ""
        self.bans: dict[str, tuple[float, str]] = {}
        self.orders: dict[str, str] = {}

    def run(self, call: Call, now: float) -> Answer:
        """The answer the script should give at Redis time `now`."""
        self.bans = {scope: ban for scope, ban in self.bans.items() if ban[0] > now}
        for scope, left, why in call.bans:
            if now + left > max(now, self.bans.get(scope, (0, ""))[0]):
                self.bans[scope] = (round(now + left), why)
        self.bans = {scope: ban for scope, ban in self.bans.items() if ban[0] > now}
        for page, value in call.unclaimed:
            if self.claims.get(page, (0, ""))[1].startswith(value):
                del self.claims[page]
        duplicates = [index for index, wanted in enumerate(call.claims) if not self._claim(*wanted)]
        bans = [
            (scope, end - now, why) for scope, (end, why) in self.bans.items()
        ]  # the day's shows in the next answer
        lane = self._serve(call, obeying(call.lanes[0], self.orders), call.waiting - len(duplicates), now)
        return Answer(now, duplicates, [lane], bans)

    def _claim(self, page: str, fence: int, value: str) -> bool:
        current = self.claims.get(page)
        if current and current[1] != value and current[0] >= fence:
            return False
        self.claims[page] = (fence, value)
        return True

    def _serve(self, call: Call, lane: LaneCall, general: int, now: float) -> LaneAnswer:
        self.reason = lane.park or self.reason
        waiting = 0 if self.bans else lane.probes + (0 if self.reason else general)
        state = self._state(lane, now)
        learnt = state.limit
        bounded = state.limit = int(max(lane.floor, min(lane.ceiling, learnt)))
        others = [h for name, h in self.holders.items() if name != call.process and h.deadline > now]
        for throttle in lane.throttles:
            shrink(state, lane, throttle, now)
        if lane.ok and lane.in_use + waiting + sum(h.demand for h in others) >= state.limit:
            grow(state, lane, now)
        quota = share(state, lane, others, waiting, now)
        slots = reserve(state, lane, others, min(waiting, quota) - lane.slots, now)
        calls, held = take_calls(state, lane, self.holders.get(call.process), others, quota, waiting, now)
        self._note_day(state, lane, held + sum(h.calls for h in others), waiting)
        left = max(0, waiting - max(0, quota - lane.in_use))
        self.holders[call.process] = Holder(max(quota, lane.in_use), left, now + LEASE, held)
        others_hold = sum(h.quota for h in others)
        state.cut_at, state.slot = round(state.cut_at, 3), round(state.slot, 3)  # as Redis stores them
        day_left = (state.day + 1) * DAY - lane.day_shift - now
        base = (quota, others_hold, state.limit, state.knee, int(state.born), self.reason)
        if state.limit == bounded:  # bounds do not undo what was learnt
            state.limit = learnt
        return LaneAnswer(*base, *slots, lane.rate, state.day, state.used, calls, day_left)

    def _note_day(self, state: State, lane: LaneCall, held: int, waiting: int) -> None:
        known = self.bans.get("token")
        if not lane.per_day or state.used < lane.per_day:
            if known and known[1].startswith("daily limit"):
                del self.bans["token"]
        elif not known and not held and waiting:
            ends = (state.day + 1) * DAY - lane.day_shift
            self.bans["token"] = ends, f"daily limit of {lane.per_day} calls is used up"

    def _state(self, lane: LaneCall, now: float) -> State:
        state = self.state = self.state or State(math.floor(now), int(lane.start))
        day = math.floor((now + lane.day_shift) / DAY)
        if state.day != day:
            state.day, state.used = day, 0
        if lane.born and lane.born != state.born:
            state.limit = max(state.limit, lane.limit)
            state.knee = state.knee or lane.knee
            state.used = max(state.used, lane.used if lane.day == day else 0)
            state.frozen_until = max(state.frozen_until, state.born + GRACE)
            state.slot = max(state.slot, state.born + 100)
        return state


def obeying(lane: LaneCall, orders: dict[str, str]) -> LaneCall:
    """The call with what an operator has set in place of its bounds."""
    wanted: dict[str, float] = {}
    for scope in ("*", "token"):
        wanted |= ORDERS[orders[scope]] if scope in orders else {}
        if scope in orders and "concurrency" in orders[scope]:
            wanted["fixed"] = wanted["ceiling"]
    if "fixed" in wanted:
        wanted["floor"] = wanted["ceiling"] = wanted.pop("fixed")
    lane = msgspec.structs.replace(lane, **wanted)
    return msgspec.structs.replace(lane, floor=min(lane.floor, lane.ceiling))


def take_calls(
    state: State, lane: LaneCall, own: Holder | None, others: list[Holder], quota: int, waiting: int, now: float
) -> tuple[int, int]:
    """Calls of a limited day: how many more this process may make, and how many it then holds."""
    if not lane.per_day:
        return -1, 0
    holds = min(lane.calls, own.calls if own else 0) if lane.day == state.day else 0
    if lane.idle:
        state.used = max(0, state.used - holds)
        return 0, 0
    if now < state.frozen_until:
        return 0, holds
    left = max(0, lane.per_day - state.used)
    fair = math.ceil(left / (1 + sum(h.demand > 0 for h in others)))
    count = max(0, min(2 * quota - holds, waiting - holds, fair, left))
    state.used += count
    return count, holds + count


def shrink(state: State, lane: LaneCall, throttle: tuple[int, float], now: float) -> None:
    """Take one refusal into account."""
    level, sent = throttle
    if sent > state.cut_at:
        state.cut_at, state.cut_from, state.hits = now, state.limit, 0
    state.hits += 1
    guess = min(level - 1, state.cut_from - max(1, math.floor(0.9 * state.hits)))
    guess = max(int(lane.floor), state.cut_from // 2, guess)
    state.knee = min(state.knee or guess, guess)
    state.limit = min(state.limit, state.knee)
    state.calm, state.step = 300 if state.hits > 2 else 0, 1


def grow(state: State, lane: LaneCall, now: float) -> None:
    """Raise the limit after successes under demand."""
    state.calm += lane.ok if state.knee else 0
    confirmed = state.calm >= 1.5 * state.limit
    if not state.knee:
        state.limit += lane.ok
    elif state.limit > state.knee and confirmed:
        state.knee, state.calm = state.limit, 0
        state.step = min(state.step * 2, max(1, state.limit // 2))
        state.limit += state.step
    elif state.limit <= state.knee and (state.calm >= 400 or (confirmed and now - state.cut_at >= 30_000)):
        state.limit, state.step, state.calm = state.limit + 1, 1, 0
    state.limit = min(state.limit, int(lane.ceiling))


def fair_level(limit: int, demands: list[int]) -> float:
    """The water level of a max-min fair division, found by trying: the highest that does not overflow."""
    if sum(demands) <= limit:
        return limit
    for served in range(len(demands)):
        level = (limit - sum(sorted(demands)[:served])) / (len(demands) - served)
        if sorted(demands)[served] > level:
            return level
    raise AssertionError("some demand must exceed the level")


def share(state: State, lane: LaneCall, others: list[Holder], waiting: int, now: float) -> int:
    """The permits this process may use from now on."""
    level = fair_level(state.limit, [lane.in_use + waiting, *(h.demand for h in others)])
    starving = any(h.quota < min(h.demand, max(1, math.floor(level))) for h in others)
    wanted = min(lane.in_use + waiting, math.floor(level) if starving else math.ceil(level))
    quota = min(lane.quota, wanted)
    base = max(quota, lane.in_use)
    room = state.limit - sum(h.quota for h in others) - base
    if room < 0:
        return min(wanted, max(0 if lane.throttles else min(quota, math.floor(level)), base + room))
    return quota if now < state.frozen_until else min(wanted, base + room)


def reserve(state: State, lane: LaneCall, others: list[Holder], wanted: int, now: float) -> tuple[int, float, float]:
    """Rate slots: how many, ms until the first, ms between them."""
    if not lane.rate:
        return 0, 0, 0
    spacing = 1000 / (lane.rate * 0.983)
    first = max(min(state.slot, now + 100 + spacing), now)
    most = max(1, math.ceil(100 / spacing / (1 + sum(h.demand > 0 for h in others))))
    count = max(0, min(wanted, most, math.ceil((now + 100 - first) / spacing)))
    state.slot = first + count * spacing
    return count, first - now, spacing


class Process:
    """A worker process as the script's caller."""

    def __init__(self) -> None:
        self.quota = self.in_use = self.calls = 0
        self.last = LaneAnswer(0, 0, 0, 0, 0, "", 0, 0, 0)


class Machine(RuleBasedStateMachine):
    """Processes that call, crash and miss answers, beside an operator and a Redis that forgets."""

    client: redis.Redis
    script: Any

    @initialize(bounds=BOUNDS)
    def begin(self, bounds: Limits) -> None:
        self.client.flushall()
        self.bounds = bounds
        self.offset = 0
        self.now = 0.0
        self.model = Model()
        self.processes = {name: Process() for name in "abcd"}
        self.tags = 0
        self.made: Counter[int] = Counter()
        self.flushed_on = -1

    @rule(
        name=PROCESSES,
        waiting=SMALL,
        done=SMALL,
        refused=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3000)), max_size=12),
        claims=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=3),
        boost=st.sampled_from([0, 0, 200]),
        probes=st.sampled_from([0, 0, 0, 1]),
        idle=st.sampled_from([False, False, True]),
        answered=st.sampled_from([True, True, True, False]),
    )
    def call(
        self,
        name: str,
        waiting: int,
        done: int,
        refused: list[tuple[int, int]],
        claims: list[tuple[int, int]],
        boost: int,
        probes: int,
        idle: bool,
        answered: bool,
    ) -> None:
        process = self.processes[name]
        done = min(done, process.in_use)
        process.in_use -= done
        throttles = [(level, self.now - age) for level, age in refused[:done]]
        process.quota = max(0, process.quota - len(throttles))
        wanted = [(str(page), fence, f"{fence} {name}:{self._tag()};") for page, fence in claims]
        call = self._call(name, process, waiting + len(wanted))
        call.claims = wanted
        lane = call.lanes[0]
        lane.throttles, lane.probes, lane.ok = throttles, probes, done - len(throttles) + (boost if done else 0)
        if idle:
            call.waiting, lane.probes, lane.idle, process.calls = 0, 0, True, 0
            call.claims = []
        answer = self._run(call)
        if answered:
            self._learn(process, call, answer)

    @rule(name=PROCESSES)
    def repeat_after_a_lost_answer(self, name: str) -> None:
        process = self.processes[name]
        call = self._call(name, process, 1)
        call.claims = [("9", 1, f"1 {name}:{self._tag()};")]
        first = self._run(call)
        again = self._run(call)
        assert again.duplicates == first.duplicates
        self._learn(process, call, again)

    @rule(name=PROCESSES, page=st.integers(1, 4), fence=st.integers(1, 3))
    def unclaim(self, name: str, page: int, fence: int) -> None:
        call = self._call(name, self.processes[name], 0)
        call.unclaimed = [(str(page), f"{fence} {name}:")]
        self._learn(self.processes[name], call, self._run(call))

    @rule(name=PROCESSES)
    def crash(self, name: str) -> None:
        self.processes[name] = Process()

    @rule(name=PROCESSES, reason=st.sampled_from(["no money", "refused"]))
    def park(self, name: str, reason: str) -> None:
        call = self._call(name, self.processes[name], 3)
        call.lanes[0].park = reason
        self._learn(self.processes[name], call, self._run(call))

    @rule(
        name=PROCESSES,
        scope=st.sampled_from(["token", fleet.WHOLE_SOURCE]),
        left=st.sampled_from([0, 40, 1500, 20_000]),
        reason=st.sampled_from(["7: slow down", "7: enough for today"]),
    )
    def ban(self, name: str, scope: str, left: float, reason: str) -> None:
        call = self._call(name, self.processes[name], 3)
        call.bans = [(scope, left, reason)]
        self._learn(self.processes[name], call, self._run(call))

    @rule()
    def lift_bans(self) -> None:
        self.client.delete(fleet.bans_key("tmapi"))
        self.model.bans = {}

    @rule(scope=st.sampled_from(["token", fleet.WHOLE_SOURCE]), order=st.sampled_from([None, *ORDERS]))
    def set_limits(self, scope: str, order: str | None) -> None:
        if order is None:
            self.client.hdel(fleet.orders_key("tmapi"), scope)
            self.model.orders.pop(scope, None)
        else:
            self.client.hset(fleet.orders_key("tmapi"), scope, order)
            self.model.orders[scope] = order

    @rule()
    def unpark(self) -> None:
        self.client.delete(fleet.parked_key("tmapi"))
        self.model.reason = ""

    @rule()
    def flush(self) -> None:
        self.client.flushall()
        self.model = Model()
        self.flushed_on = self._day()

    @rule(milliseconds=st.sampled_from([50, 1000, 3000, 11_000, 31_000, DAY // 2]))
    def time_passes(self, milliseconds: int) -> None:
        self.offset += milliseconds

    @invariant()
    def redis_holds_what_the_model_holds(self) -> None:
        stored: dict[Any, Any] = self.client.hgetall(fleet.holders_key("tmapi", "token"))
        live = {
            name.decode(): [int(part) for part in text.split()[:3:2]]
            for name, text in stored.items()
            if float(text.split()[3]) > self.now
        }
        model = {name: [h.quota, h.waiting] for name, h in self.model.holders.items() if h.deadline > self.now}
        assert live == model

    @invariant()
    def no_day_has_more_calls_than_its_limit(self) -> None:
        if self.bounds.per_day and self.flushed_on != self._day():
            assert self.made[self._day()] <= self.bounds.per_day

    def _day(self) -> int:
        return math.floor((self.now + self.bounds.day_shift * 1000) / DAY)

    def _tag(self) -> int:
        self.tags += 1
        return self.tags

    def _call(self, name: str, process: Process, waiting: int) -> Call:
        bounds, last = self.bounds, process.last
        lane = LaneCall(
            name="token", quota=process.quota, in_use=process.in_use, slots=0, probes=0, ok=0, throttles=[], park="",
            born=last.born, limit=last.limit, knee=last.knee, rate=bounds.rate, start=bounds.start, floor=bounds.floor,
            ceiling=bounds.ceiling, per_day=bounds.per_day, day_shift=bounds.day_shift * 1000, day=last.day,
            used=last.used, calls=process.calls,
        )  # fmt: skip
        return Call(name, [], [], [], waiting, [lane], LEASE, GRACE, offset=self.offset)

    def _run(self, call: Call) -> Answer:
        keys, args = script_arguments("tmapi", call)
        answer = read_answer(self.script(keys=keys, args=args))
        self.now = answer.now
        expected = self.model.run(call, answer.now)
        assert_same(answer, expected)
        self._check_grant(obeying(call.lanes[0], self.model.orders), answer.lanes[0])
        assert not (answer.bans and answer.lanes[0].quota > call.lanes[0].in_use), "something was granted during a ban"
        return answer

    def _check_grant(self, said: LaneCall, got: LaneAnswer) -> None:
        if got.quota > max(said.quota, said.in_use):
            assert got.others + got.quota <= got.limit, "more was granted than the limit allows"
        if got.parked and got.quota > said.in_use:
            assert got.quota - said.in_use <= said.probes, "a parked credential was granted to other than a probe"
        assert said.floor <= got.limit <= said.ceiling

    def _learn(self, process: Process, call: Call, answer: Answer) -> None:
        got, day = answer.lanes[0], process.last.day
        process.last, process.quota = got, got.quota
        process.calls = max(0, got.calls) + (process.calls if got.day == day else 0)
        most = process.in_use + process.calls if self.bounds.per_day else process.quota
        before = process.in_use
        process.in_use = min(max(process.quota, before), before + call.waiting, max(most, before))
        if self.bounds.per_day:
            process.calls -= process.in_use - before
            self.made[got.day] += process.in_use - before


def assert_same(answer: Answer, expected: Answer) -> None:
    """Compare two answers; times may differ by what their text form loses."""
    assert answer.duplicates == expected.duplicates
    for ban, same in zip(sorted(answer.bans), sorted(expected.bans), strict=True):
        assert ban[::2] == same[::2]
        assert ban[1] == pytest.approx(same[1], abs=1)
    (got,), (wanted,) = answer.lanes, expected.lanes
    exact = ("quota", "others", "limit", "knee", "born", "parked", "slots", "rate", "day", "used", "calls")
    assert [getattr(got, name) for name in exact] == [getattr(wanted, name) for name in exact]
    times = (wanted.delay, wanted.spacing, wanted.day_left)
    assert (got.delay, got.spacing, got.day_left) == pytest.approx(times, abs=0.01)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    redis_server.start()
    with redis.Redis(port=redis_server.port) as client:
        yield client


def test_the_script_does_what_the_model_says(client: redis.Redis) -> None:
    bound = type("BoundMachine", (Machine,), {"client": client, "script": client.register_script(script_text())})
    run_state_machine_as_test(
        bound, settings=settings(max_examples=40, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    )
