-- Gives up bytes that no job has needed for `grace_s`. args: grace_s, limit, claim_s: for so long nobody else is given
-- what this returns, the names of objects to delete.
local time = now()
for _, sha in ipairs(redis.call('ZRANGEBYSCORE', UNREFERENCED, '-inf', time - args.grace_s, 'LIMIT', 0, args.limit)) do
  redis.call('ZREM', UNREFERENCED, sha)
  local name = redis.call('GET', key('media', sha))
  if name and redis.call('SCARD', key('media_jobs', sha)) == 0 then
    redis.call('DEL', key('media', sha))
    redis.call('ZADD', DOOMED, time, name)
  end
end
local names = redis.call('ZRANGEBYSCORE', DOOMED, '-inf', time, 'LIMIT', 0, args.limit)
for _, name in ipairs(names) do redis.call('ZADD', DOOMED, time + args.claim_s, name) end
return names
