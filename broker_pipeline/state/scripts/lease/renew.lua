-- Prolongs the lease. KEYS: lease, epoch. args: instance, ttl_ms. Returns 1 while the lease is this instance's.
local LEASE = KEYS[1]
if text(LEASE) ~= args.instance then return 0 end
return redis.call('PEXPIRE', LEASE, args.ttl_ms)
