-- Takes from the buckets of one key, from all of them or from none. A bucket holds what a minute allows, and fills evenly.
-- args: keys (bucket, parallel, tenant), id, tenant, limits (those that there are), requests, tokens, jobs; name and for_s
-- of a request that counts as under way for so long; yields: whether it is a line of a batch. Lines leave a place to
-- requests where one was refused lately. Where there is only one, the two have it in turns while both want it.
-- Returns {what refuses or '', seconds to wait, requests left, seconds until they are full again, tokens left, seconds}.
local MINUTE_S = 60
local PARALLEL_WAIT_S, QUEUED_WAIT_S = 1, 10  -- nobody knows when a request or a job ends
local CROWDED_S, LATE_S = 60, 2  -- a client comes back a little later than it was told
local LINE_WAIT_S = 1  -- a line looks again so often, whatever it is told
local kind, other = 'request', 'line'
if args.yields then kind, other = other, kind end
local limits, at = args.limits, now()
local bucket, parallel = key('bucket', args.id), key('parallel', args.id)
local refusing, wait_s = '', 0

local function refuse(what, seconds)
  if refusing == '' or seconds > wait_s then refusing, wait_s = what, seconds end
end

-- What is left of a kind; nothing where it has no limit.
local function left_of(what)
  local most = limits[what .. '_per_minute']
  if not most then return nil end
  local left, since = unpack(redis.call('HMGET', bucket, what, what .. '_at'))
  left, since = tonumber(left) or most, tonumber(since) or at
  return math.min(most, left + math.max(0, at - since) * most / MINUTE_S), most
end

local function check(what)
  local left, most = left_of(what)
  if left and args[what] > left then refuse(what, (args[what] - left) * MINUTE_S / most) end
end

-- {whole ones left or -1, seconds until all are there}
local function shown(what)
  local left, most = left_of(what)
  if not left then return -1, '0' end
  if refusing == '' and args[what] > 0 then
    left = left - args[what]
    redis.call('HSET', bucket, what, string.format('%.9f', left), what .. '_at', string.format('%.6f', at))
    redis.call('EXPIRE', bucket, 2 * MINUTE_S)
  end
  return math.floor(left), string.format('%.3f', (most - left) * MINUTE_S / most)
end

-- How many places of a limit are for the other kind.
local function num_left(what)
  local wants_until, last = unpack(redis.call('HMGET', bucket, what .. '_' .. other .. '_until', what .. '_last'))
  if at >= (tonumber(wants_until) or 0) then return 0 end
  if limits['max_' .. what] > 1 then return args.yields and 1 or 0 end
  return last == kind and 1 or 0
end

local met = {}
-- Refuses, or not; remembers who wanted it.
local function meet(what, is_full, wait)
  met[what] = is_full
  if not is_full then return end
  refuse(what, wait)
  local wants_s = args.yields and LINE_WAIT_S + LATE_S or limits['max_' .. what] > 1 and CROWDED_S or wait + LATE_S
  redis.call('HSET', bucket, what .. '_' .. kind .. '_until', string.format('%.6f', at + wants_s))
  redis.call('EXPIRE', bucket, 2 * MINUTE_S)
end

check('requests')
check('tokens')
if limits.max_queued and args.jobs > 0 then
  local num_queued = redis.call('ZCARD', key('tenant', args.tenant) .. ':queued')
  meet('queued', num_queued + args.jobs > limits.max_queued - num_left('queued'), QUEUED_WAIT_S)
end
if limits.max_parallel and args.name then
  redis.call('ZREMRANGEBYSCORE', parallel, '-inf', at)
  local is_new = not redis.call('ZSCORE', parallel, args.name)
  local most = limits.max_parallel - num_left('parallel')
  meet('parallel', is_new and redis.call('ZCARD', parallel) >= most, PARALLEL_WAIT_S)
  if refusing == '' then
    redis.call('ZADD', parallel, string.format('%.6f', at + args.for_s), args.name)
    redis.call('EXPIRE', parallel, args.for_s)
  end
end
for what in pairs(met) do
  if refusing == '' and limits['max_' .. what] == 1 then
    redis.call('HSET', bucket, what .. '_last', kind)
    redis.call('HDEL', bucket, what .. '_' .. kind .. '_until')
    redis.call('EXPIRE', bucket, 2 * MINUTE_S)
  end
end
local requests, requests_s = shown('requests')
local tokens, tokens_s = shown('tokens')
return {refusing, string.format('%.3f', wait_s), requests, requests_s, tokens, tokens_s}
