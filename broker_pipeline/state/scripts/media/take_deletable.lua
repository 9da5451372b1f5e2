-- Gives up bytes that no job has needed for `grace_s`. args: grace_s, limit, claim_s: for so long nobody else is given
-- what this returns, the names of objects to delete.
local time = now()
for _, sha in ipairs(redis.call('ZRANGEBYSCORE', UNREFERENCED, '-inf', time - args.grace_s, 'LIMIT', 0, args.limit)) do
  redis.call('ZREM', UNREFERENCED, sha)
  local name = object_of(sha)
  if name and redis.call('SCARD', jobs_of(sha)) == 0 then
    redis.call('DEL', key('media', sha))
    redis.call('ZADD', DOOMED, time, name)
  end
end
local names = redis.call('ZRANGEBYSCORE', DOOMED, '-inf', time, 'LIMIT', 0, args.limit)
local taken = {}
for _, name in ipairs(names) do
  if string.match(name, '^[%w_.-]+$') then
    redis.call('ZADD', DOOMED, time + args.claim_s, name)
    taken[#taken + 1] = name
  else
    redis.call('ZREM', DOOMED, name)
  end
end
return taken
