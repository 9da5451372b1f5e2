-- Counts requests as under way for longer. args: keys (parallel), id, names, for_s.
local parallel = key('parallel', args.id)
for _, name in ipairs(args.names) do
  redis.call('ZADD', parallel, 'XX', string.format('%.6f', now() + args.for_s), name)
end
redis.call('EXPIRE', parallel, args.for_s)
return 1
