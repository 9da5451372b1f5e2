-- Takes the next batch whose end is to be told, until its next try. args: least_s, most_s (from one try to the next).
-- Returns its id, or false.
local id = redis.call('ZRANGEBYSCORE', UNTOLD, '-inf', now(), 'LIMIT', 0, 1)[1]
if not id then return false end
local batch = key('batch', id)
local status = redis.call('HGET', batch, 'status')
local ended_at = tonumber(status and redis.call('HGET', batch, status .. '_at') or '0')
redis.call('ZADD', UNTOLD, now() + math.max(args.least_s, math.min(now() - ended_at, args.most_s)), id)
return id
