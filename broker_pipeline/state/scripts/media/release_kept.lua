-- Ends references whose time has come or, with `left_s`, the oldest of those that have at least so long left.
-- args: limit, left_s where given. Returns how many.
local from, to = '-inf', now()
if args.left_s then from, to = to + args.left_s, '+inf' end
return release_kept(redis.call('ZRANGEBYSCORE', KEPT, from, to, 'LIMIT', 0, args.limit))
