-- Takes from the buckets of one key, from all of them or from none. A bucket holds what a minute allows, and fills evenly.
-- args: keys (bucket, parallel, tenant), id, tenant, limits (those that there are), requests, tokens, jobs; name and for_s
-- of a request that counts as under way for so long; yields: whether it goes behind those that were lately refused.
-- Returns {what refuses or '', seconds to wait, requests left, seconds until they are full again, tokens left, seconds}.
local MINUTE_S = 60
local PARALLEL_WAIT_S, QUEUED_WAIT_S = 1, 10  -- nobody knows when a request or a job ends
local LATE_S = 2  -- a client comes back a little later than it was told
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

check('requests')
check('tokens')
if limits.max_queued and args.jobs > 0
   and redis.call('ZCARD', key('tenant', args.tenant) .. ':queued') + args.jobs > limits.max_queued then
  refuse('queued', QUEUED_WAIT_S)
end
if args.yields and at < tonumber(redis.call('HGET', bucket, 'expected_until') or '0') then
  refuse('expected', PARALLEL_WAIT_S)
end
if limits.max_parallel and args.name then
  redis.call('ZREMRANGEBYSCORE', parallel, '-inf', at)
  if not redis.call('ZSCORE', parallel, args.name) and redis.call('ZCARD', parallel) >= limits.max_parallel then
    refuse('parallel', PARALLEL_WAIT_S)
  end
  if refusing == '' then
    redis.call('ZADD', parallel, string.format('%.6f', at + args.for_s), args.name)
    redis.call('EXPIRE', parallel, args.for_s)
  end
end
if not args.yields and (refusing == 'parallel' or refusing == 'queued') then
  redis.call('HSET', bucket, 'expected_until', string.format('%.6f', at + wait_s + LATE_S))
  redis.call('EXPIRE', bucket, 2 * MINUTE_S)
end
local requests, requests_s = shown('requests')
local tokens, tokens_s = shown('tokens')
return {refusing, string.format('%.3f', wait_s), requests, requests_s, tokens, tokens_s}
