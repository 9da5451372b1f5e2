-- Gives the lease back. KEYS: lease, epoch. args: instance. Returns 1 when it was this instance's.
local LEASE = KEYS[1]
if text(LEASE) ~= args.instance then return 0 end
return redis.call('DEL', LEASE)
