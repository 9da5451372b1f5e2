-- Takes the lease where it is free or the instance's own.
-- KEYS: lease, epoch. args: instance, ttl_ms, last_epoch, which a new one exceeds.
-- Returns {1, epoch}, or {0, 0} when another has it.
--
-- An epoch is at least the time in hundredths of a second, so that a Redis that lost everything does not hand out an
-- old one, which stages would refuse for ever.
local LEASE, EPOCH = unpack(KEYS)
local holder = redis.call('GET', LEASE)
if holder and holder ~= args.instance then return {0, 0} end
redis.call('SET', LEASE, args.instance, 'PX', args.ttl_ms)
local epoch = tonumber(redis.call('GET', EPOCH) or '0')
if not holder then
  epoch = math.max(epoch + 1, math.floor(now() * 100), args.last_epoch + 1)
  redis.call('SET', EPOCH, string.format('%.0f', epoch))
end
return {1, epoch}
