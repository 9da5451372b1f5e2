-- Takes the lease where it is free, the instance's own, or that of one that is gone.
-- KEYS: lease, epoch. args: instance, ttl_ms, last_epoch, which a new one exceeds, gone: instances, with `true` for each.
-- Returns {1, epoch, what stood there in place of an epoch or nil}, or {0, 0} when another has it.
--
-- An epoch is at least the time in hundredths of a second, so that a Redis that lost everything does not hand out an
-- old one, which stages would refuse for ever. Something strange in its place is taken for nothing, as is a lease that
-- would never end, once it has had the time in which its holder would have renewed it.
local LEASE, EPOCH = unpack(KEYS)
local LONGEST_MS = 3600 * 1000
local LARGEST = 2 ^ 40 - 2 ^ 20  -- of an epoch; what is said on the wire ends at 2^40
local holder = text(LEASE)
if args.gone and args.gone[holder or ''] then holder = false end
if holder and holder ~= args.instance then
  local left_ms = redis.call('PTTL', LEASE)
  if left_ms < 0 or left_ms > LONGEST_MS then redis.call('PEXPIRE', LEASE, args.ttl_ms) end
  return {0, 0}
end
local held = text(EPOCH)
local epoch = held and string.match(held, '^%d+$') and tonumber(held) or 0
if epoch > LARGEST then epoch = 0 end
local is_strange = epoch == 0 and redis.call('EXISTS', EPOCH) == 1
if not holder or epoch == 0 then
  epoch = math.max(epoch + 1, math.floor(now() * 100), args.last_epoch + 1)
  redis.call('SET', EPOCH, string.format('%.0f', epoch))
end
redis.call('SET', LEASE, args.instance, 'PX', args.ttl_ms)
return {1, epoch, is_strange and (held or 'no string') or nil}
