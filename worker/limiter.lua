-- One call of one process about one source: check claims, report what happened, get a share of each credential's limit.
--
-- KEYS[1] parked reasons, KEYS[2] known credentials, KEYS[3] bans, KEYS[4] what an operator has set, then for each
-- credential its state and its holders.
-- ARGV[1] the request (see Call in limiter_call.py), ARGV[2] prefix of the claim keys, ARGV[3] channel for news,
-- ARGV[4] the source. Times are milliseconds of Redis' clock.
-- The claim keys are made here: Celery's Redis transport has no cluster mode, so nothing is lost by not declaring them.

local HORIZON = 100        -- rate slots are handed out this far ahead, so that a call can bring several
local RATE_MARGIN = 0.983  -- keeps any sliding second under the rate although calls jitter on their way
local CALM_CALLS = 400     -- successes at a known-good limit before one more is tried: keeps refusals near 1 in 400
local CALM_TIME = 30000    -- a slow API is tried again after this long
local CONFIRM = 1.5        -- round trips without a refusal that confirm a raised limit
local DAY = 86400000
local DAY_BAN = 'daily limit'  -- how the reason of a ban begins that ends when the limit is raised

local request = cmsgpack.unpack(ARGV[1])
local claim_prefix = ARGV[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000 + request.offset
local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max

local function forget_claims()
  for _, claim in ipairs(request.unclaimed) do
    local key, value = claim_prefix .. claim[1], claim[2]
    local current = redis.call('GET', key)
    if current and string.sub(current, 1, #value) == value then redis.call('DEL', key) end
  end
  for _, page in ipairs(request.finished) do redis.call('EXPIRE', claim_prefix .. page, request.finished_ttl) end
end

-- A repeated request (its answer was lost) carries the same tag and is no duplicate.
local function claim(page, fence, value)
  local key = claim_prefix .. page
  local current = redis.call('GET', key)
  if current and current ~= value and tonumber(string.match(current, '^%d+')) >= fence then return false end
  redis.call('SET', key, value, 'EX', request.claim_ttl)
  return true
end

local function check_claims()
  local duplicates = {}
  for index, wanted in ipairs(request.claims) do
    if not claim(wanted[1], wanted[2], wanted[3]) then duplicates[#duplicates + 1] = index - 1 end
  end
  return duplicates
end

-- Whoever may still call is told at once: a refused call may be billed, and may prolong a ban.
local function tell_everybody() redis.call('PUBLISH', ARGV[3], ARGV[4]) end

local function park(lane)
  if lane.park ~= '' and redis.call('HSET', KEYS[1], lane.name, lane.park) == 1 then tell_everybody() end
end

-- A shorter ban never shortens a longer one. Who knows of a ban asks again at its end, so only a new one is news.
local function note_bans()
  for _, ban in ipairs(request.bans) do
    local scope, ends, reason = ban[1], now + ban[2], ban[3]
    local known = redis.call('HGET', KEYS[3], scope)
    local known_end = known and tonumber(string.match(known, '^%S+')) or 0
    if ends > max(known_end, now) then
      redis.call('HSET', KEYS[3], scope, string.format('%.0f %s', ends, reason))
      if known_end <= now then tell_everybody() end
    end
  end
end

local function bans_in_force()
  local bans, flat = {}, redis.call('HGETALL', KEYS[3])
  for index = 1, #flat, 2 do
    local ends, reason = string.match(flat[index + 1], '^(%S+) (.*)$')
    if tonumber(ends) <= now then redis.call('HDEL', KEYS[3], flat[index])
    else bans[#bans + 1] = {flat[index], tonumber(ends) - now, reason} end
  end
  return bans
end

local function is_banned(bans, name)
  for _, ban in ipairs(bans) do
    if ban[1] == name or ban[1] == '*' then return true end
  end
  return false
end

-- What an operator has set counts before what the caller's settings say; for one credential before for all.
local function load_orders()
  local orders, flat = {}, redis.call('HGETALL', KEYS[4])
  for index = 1, #flat, 2 do orders[flat[index]] = flat[index + 1] end
  return orders
end

local function obey_orders(lane, orders)
  local set = {}
  for _, scope in ipairs({'*', lane.name}) do
    for name, value in string.gmatch(orders[scope] or '', '(%w+)=(%S+)') do set[name] = tonumber(value) end
  end
  lane.rate, lane.ceiling = set.rate or lane.rate, set.concurrency or set.ceiling or lane.ceiling
  lane.floor = min(set.concurrency or set.floor or lane.floor, lane.ceiling)
  lane.floor, lane.ceiling = floor(lane.floor), floor(lane.ceiling)
end

local FIELDS = {
  'born', 'limit', 'knee', 'calm', 'step', 'cut_at', 'cut_from', 'hits', 'slot', 'frozen_until', 'day', 'used',
  'in_force'
}

local function load_state(key, lane)
  local values = redis.call('HMGET', key, unpack(FIELDS))
  local state = {}
  for index, field in ipairs(FIELDS) do state[field] = tonumber(values[index] or '0') end
  if state.born == 0 then
    -- The producer may have brought back what an earlier life of this state had learnt.
    state.born, state.limit, state.step = floor(now), state.limit > 0 and state.limit or lane.start, 1
    redis.call('SADD', KEYS[2], lane.name)
  end
  local day = floor((now + lane.day_shift) / DAY)
  if state.day ~= day then state.day, state.used = day, 0 end
  -- The caller knew an earlier life of this state: Redis lost it. Restore what was learnt, and give nothing out until
  -- every process has said what it holds.
  if lane.born ~= 0 and lane.born ~= state.born then
    state.limit = max(state.limit, lane.limit)
    if state.knee == 0 then state.knee = lane.knee end
    if lane.day == day then state.used = max(state.used, lane.used) end
    state.frozen_until = max(state.frozen_until, state.born + request.grace)
    state.slot = max(state.slot, state.born + HORIZON)
  end
  -- Bounds hide what was learnt but do not undo it: it counts again when they are lifted.
  state.learnt = state.limit
  state.limit = floor(max(lane.floor, min(lane.ceiling, state.limit)))
  state.bounded = state.limit
  return state
end

local function save_state(key, state)
  local flat = {}
  state.in_force = state.limit
  for _, field in ipairs(FIELDS) do
    local value = state[field]
    if field == 'limit' and value == state.bounded then value = state.learnt end
    flat[#flat + 1] = field
    flat[#flat + 1] = string.format('%.3f', value)
  end
  redis.call('HSET', key, unpack(flat))
end

-- A refused call tells at which level of calls in flight it was sent. Refusals of calls sent before the last cut belong
-- to the same burst: together they never take more than half, and they count about one permit each.
local function shrink(state, lane)
  for _, refused in ipairs(lane.throttles) do
    local level, sent = refused[1], refused[2]
    if sent > state.cut_at then
      state.cut_at, state.cut_from, state.hits = now, state.limit, 0
    end
    state.hits = state.hits + 1
    local guess = min(level - 1, state.cut_from - max(1, floor(0.9 * state.hits)))
    guess = max(lane.floor, floor(state.cut_from / 2), guess)
    if state.knee == 0 or guess < state.knee then state.knee = guess end
    state.limit = min(state.limit, state.knee)
    -- What a burst shows is a rougher guess than what one refusal shows: check it sooner.
    state.calm, state.step = state.hits > 2 and floor(CALM_CALLS * 3 / 4) or 0, 1
  end
end

-- Doubles each round trip until the first refusal has shown the knee; from there one more is tried after a long calm,
-- and steps double while nothing is refused, so that a gate that opened is found in seconds.
local function grow(state, lane)
  if state.knee == 0 then
    state.limit = state.limit + lane.ok
  else
    state.calm = state.calm + lane.ok
    local confirmed = state.calm >= CONFIRM * state.limit
    if state.limit > state.knee and confirmed then
      state.knee, state.step, state.calm = state.limit, min(state.step * 2, max(1, floor(state.limit / 2))), 0
      state.limit = state.limit + state.step
    elseif state.limit <= state.knee and
      (state.calm >= CALM_CALLS or (confirmed and now - state.cut_at >= CALM_TIME)) then
      state.limit, state.step, state.calm = state.limit + 1, 1, 0
    end
  end
  state.limit = min(state.limit, lane.ceiling)
end

local function load_others(key)
  local others, flat = {}, redis.call('HGETALL', key)
  for index = 1, #flat, 2 do
    local quota, in_use, waiting, deadline, calls = string.match(flat[index + 1], '(%S+) (%S+) (%S+) (%S+) (%S+)')
    if tonumber(deadline) <= now then
      redis.call('HDEL', key, flat[index])
    elseif flat[index] ~= request.process then
      others[#others + 1] =
        {quota = tonumber(quota), demand = tonumber(quota) + tonumber(waiting), calls = tonumber(calls)}
    else
      others.own_calls = tonumber(calls)
    end
  end
  return others
end

-- The water level of a max-min fair division: nobody gets more than this while somebody who wants it has less.
local function fair_level(limit, demands)
  table.sort(demands)
  local left = limit
  for index, demand in ipairs(demands) do
    local level = left / (#demands - index + 1)
    if demand > level then return level end
    left = left - demand
  end
  return limit
end

local function someone_starves(others, level)
  for _, other in ipairs(others) do
    if other.quota < min(other.demand, max(1, floor(level))) then return true end
  end
  return false
end

local function share(state, lane, others, waiting)
  local demands, held = {lane.in_use + waiting}, 0
  for _, other in ipairs(others) do
    demands[#demands + 1] = other.demand
    held = held + other.quota
  end
  local level = fair_level(state.limit, demands)
  local fair = someone_starves(others, level) and floor(level) or ceil(level)
  local wanted = min(lane.in_use + waiting, fair)
  local quota = min(lane.quota, wanted)
  local base = max(quota, lane.in_use)
  local room = state.limit - held - base
  if room < 0 then
    -- Who was refused gives way at once; the others keep their fair share.
    local least = #lane.throttles > 0 and 0 or min(quota, floor(level))
    return min(wanted, max(least, base + room)), held
  end
  if now < state.frozen_until then return quota, held end
  return min(wanted, base + room), held
end

local function count_rivals(others)
  local rivals = 1
  for _, other in ipairs(others) do
    if other.demand > 0 then rivals = rivals + 1 end
  end
  return rivals
end

local function reserve_slots(state, lane, others, wanted)
  if lane.rate <= 0 then return 0, 0, 0 end
  local spacing, rivals = 1000 / (lane.rate * RATE_MARGIN), count_rivals(others)
  -- No slot that was handed out lies further ahead than the horizon: a rate that was raised counts from now on.
  local first = max(min(state.slot, now + HORIZON + spacing), now)
  local most = max(1, ceil(HORIZON / spacing / rivals))
  local count = max(0, min(wanted, most, ceil((now + HORIZON - first) / spacing)))
  state.slot = first + count * spacing
  return count, first - now, spacing
end

-- Calls of a limited day are handed out a few at a time and counted as made, so that no crash can make it more. Who
-- has no use for them gives them back; what a lost answer brought is lost.
local function reserve_calls(state, lane, others, quota, waiting)
  if lane.per_day <= 0 then return 0, 0 end
  local holds = lane.day == state.day and min(lane.calls, others.own_calls or 0) or 0
  if lane.idle then
    state.used = max(0, state.used - holds)
    return 0, 0
  end
  if now < state.frozen_until then return 0, holds end
  local left = max(0, lane.per_day - state.used)
  local count = max(0, min(2 * quota - holds, waiting - holds, ceil(left / count_rivals(others)), left))
  state.used = state.used + count
  return count, holds + count
end

-- A day that is used up is a ban like any other, made once nobody holds a call any more, and gone when the limit is raised.
local function note_day(state, lane, others, held, waiting)
  local known = redis.call('HGET', KEYS[3], lane.name)
  local ours = known and string.find(known, ' ' .. DAY_BAN, 1, true)
  if lane.per_day <= 0 or state.used < lane.per_day then
    if ours then
      redis.call('HDEL', KEYS[3], lane.name)
      tell_everybody()
    end
    return
  end
  for _, other in ipairs(others) do held = held + other.calls end
  if held == 0 and waiting > 0 and not known then
    local ends = (state.day + 1) * DAY - lane.day_shift
    redis.call('HSET', KEYS[3], lane.name, string.format('%.0f %s of %d calls is used up', ends, DAY_BAN, lane.per_day))
    tell_everybody()
  end
end

local function total_demand(lane, others, waiting)
  local total = lane.in_use + waiting
  for _, other in ipairs(others) do total = total + other.demand end
  return total
end

local function serve(index, lane, general, banned)
  local state_key, holders_key = KEYS[3 + 2 * index], KEYS[4 + 2 * index]
  park(lane)
  local reason = redis.call('HGET', KEYS[1], lane.name) or ''
  local open = reason == '' and not banned
  local waiting = banned and 0 or lane.probes + (open and general or 0)
  local state, others = load_state(state_key, lane), load_others(holders_key)
  shrink(state, lane)
  if lane.ok > 0 and total_demand(lane, others, waiting) >= state.limit then grow(state, lane) end
  local quota, held = share(state, lane, others, waiting)
  local slots, delay, spacing = reserve_slots(state, lane, others, min(waiting, quota) - lane.slots)
  local calls, held_calls = reserve_calls(state, lane, others, quota, waiting)
  note_day(state, lane, others, held_calls, waiting)
  save_state(state_key, state)
  local taken = max(0, quota - lane.in_use)
  local left = max(0, waiting - taken)
  local holding = {max(quota, lane.in_use), lane.in_use, left, now + request.lease, held_calls}
  if request.leaving then redis.call('HDEL', holders_key, request.process)
  else redis.call('HSET', holders_key, request.process, string.format('%d %d %d %.3f %d', unpack(holding))) end
  local answer = {
    quota, held, state.limit, state.knee, state.born, reason, slots, delay, spacing, lane.rate, state.day, state.used,
    lane.per_day > 0 and calls or -1, (state.day + 1) * DAY - lane.day_shift - now
  }
  return answer, open and max(0, general - taken) or general
end

forget_claims()
note_bans()
local bans = bans_in_force()
local duplicates = check_claims()
local answers, general, orders = {}, request.waiting - #duplicates, load_orders()
for index, lane in ipairs(request.lanes) do
  obey_orders(lane, orders)
  answers[index], general = serve(index, lane, general, is_banned(bans, lane.name))
end
return cmsgpack.pack({now, duplicates, answers, bans})
