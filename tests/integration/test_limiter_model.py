"""The limiter's script against a plain model of it, with crashes, lost answers, a flushed Redis and moving time."""

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from models import fleet
from tests.servers import RedisServer
from worker.limiter_call import Answer, Call, LaneAnswer, LaneCall, read_answer, script_arguments, script_text

LEASE, GRACE = 10_000, 2_500
PROCESSES = st.sampled_from(["a", "b", "c", "d"])
SMALL = st.integers(0, 30)
BOUNDS = st.sampled_from([(0.0, 4, 1, 60), (0.0, 8, 8, 8), (50.0, 6, 2, 40), (3.0, 4, 1, 60)])


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


class Holder(msgspec.Struct):
    """What one process holds; times in ms."""

    quota: int
    waiting: int
    deadline: float

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
        lane = self._serve(call, call.lanes[0], call.waiting - len(duplicates), now)
        return Answer(now, duplicates, [lane], [(scope, end - now, why) for scope, (end, why) in self.bans.items()])

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
        others = [h for name, h in self.holders.items() if name != call.process and h.deadline > now]
        for throttle in lane.throttles:
            shrink(state, lane, throttle, now)
        if lane.ok and lane.in_use + waiting + sum(h.demand for h in others) >= state.limit:
            grow(state, lane, now)
        quota = share(state, lane, others, waiting, now)
        slots = reserve(state, lane, others, min(waiting, quota) - lane.slots, now)
        left = max(0, waiting - max(0, quota - lane.in_use))
        self.holders[call.process] = Holder(max(quota, lane.in_use), left, now + LEASE)
        held = sum(h.quota for h in others)
        state.cut_at, state.slot = round(state.cut_at, 3), round(state.slot, 3)  # as Redis stores them
        return LaneAnswer(quota, held, state.limit, state.knee, int(state.born), self.reason, *slots)

    def _state(self, lane: LaneCall, now: float) -> State:
        state = self.state = self.state or State(math.floor(now), int(lane.start))
        if lane.born and lane.born != state.born:
            state.limit = max(state.limit, lane.limit)
            state.knee = state.knee or lane.knee
            state.frozen_until = max(state.frozen_until, state.born + GRACE)
            state.slot = max(state.slot, state.born + 100)
        state.limit = int(max(lane.floor, min(lane.ceiling, state.limit)))
        return state


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
    spacing = 1000 / (lane.rate * 0.985)
    first = max(state.slot, now)
    most = max(1, math.ceil(100 / spacing / (1 + sum(h.demand > 0 for h in others))))
    count = max(0, min(wanted, most, math.ceil((now + 100 - first) / spacing)))
    state.slot = first + count * spacing
    return count, first - now, spacing


class Process:
    """A worker process as the script's caller."""

    def __init__(self) -> None:
        self.quota = self.in_use = 0
        self.last = LaneAnswer(0, 0, 0, 0, 0, "", 0, 0, 0)


class Machine(RuleBasedStateMachine):
    """Processes that call, crash and miss answers, beside an operator and a Redis that forgets."""

    client: redis.Redis
    script: Any

    @initialize(bounds=BOUNDS)
    def begin(self, bounds: tuple[float, int, int, int]) -> None:
        self.client.flushall()
        self.bounds = bounds
        self.offset = 0
        self.now = 0.0
        self.model = Model()
        self.processes = {name: Process() for name in "abcd"}
        self.tags = 0

    @rule(
        name=PROCESSES,
        waiting=SMALL,
        done=SMALL,
        refused=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 3000)), max_size=12),
        claims=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), max_size=3),
        boost=st.sampled_from([0, 0, 200]),
        probes=st.sampled_from([0, 0, 0, 1]),
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

    @rule()
    def unpark(self) -> None:
        self.client.delete(fleet.parked_key("tmapi"))
        self.model.reason = ""

    @rule()
    def flush(self) -> None:
        self.client.flushall()
        self.model = Model()

    @rule(milliseconds=st.sampled_from([50, 1000, 3000, 11_000, 31_000]))
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

    def _tag(self) -> int:
        self.tags += 1
        return self.tags

    def _call(self, name: str, process: Process, waiting: int) -> Call:
        rate, start, floor, ceiling = self.bounds
        last = process.last
        lane = LaneCall(
            name="token", quota=process.quota, in_use=process.in_use, slots=0, probes=0, ok=0, throttles=[], park="",
            born=last.born, limit=last.limit, knee=last.knee, rate=rate, start=start, floor=floor, ceiling=ceiling,
        )  # fmt: skip
        return Call(name, [], [], [], waiting, [lane], LEASE, GRACE, offset=self.offset)

    def _run(self, call: Call) -> Answer:
        keys, args = script_arguments("tmapi", call)
        answer = read_answer(self.script(keys=keys, args=args))
        self.now = answer.now
        expected = self.model.run(call, answer.now)
        assert_same(answer, expected)
        self._check_grant(call.lanes[0], answer.lanes[0])
        assert not (answer.bans and answer.lanes[0].quota > call.lanes[0].in_use), "something was granted during a ban"
        return answer

    def _check_grant(self, said: LaneCall, got: LaneAnswer) -> None:
        if got.quota > max(said.quota, said.in_use):
            assert got.others + got.quota <= got.limit, "more was granted than the limit allows"
        if got.parked and got.quota > said.in_use:
            assert got.quota - said.in_use <= said.probes, "a parked credential was granted to other than a probe"
        assert said.floor <= got.limit <= said.ceiling

    def _learn(self, process: Process, call: Call, answer: Answer) -> None:
        process.last = answer.lanes[0]
        process.quota = process.last.quota
        process.in_use = min(max(process.quota, process.in_use), process.in_use + call.waiting)


def assert_same(answer: Answer, expected: Answer) -> None:
    """Compare two answers; times may differ by what their text form loses."""
    assert answer.duplicates == expected.duplicates
    for ban, same in zip(sorted(answer.bans), sorted(expected.bans), strict=True):
        assert ban[::2] == same[::2]
        assert ban[1] == pytest.approx(same[1], abs=1)
    (got,), (wanted,) = answer.lanes, expected.lanes
    assert msgspec.structs.astuple(got)[:7] == msgspec.structs.astuple(wanted)[:7]
    assert (got.delay, got.spacing) == pytest.approx((wanted.delay, wanted.spacing), abs=0.01)


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    redis_server.start()
    with redis.Redis(port=redis_server.port) as client:
        yield client


def test_the_script_does_what_the_model_says(client: redis.Redis) -> None:
    bound = type("BoundMachine", (Machine,), {"client": client, "script": client.register_script(script_text())})
    run_state_machine_as_test(
        bound, settings=settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))
    )
