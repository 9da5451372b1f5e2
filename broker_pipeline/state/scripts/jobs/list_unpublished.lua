-- Lists jobs that were recorded some time ago and may not be in the queue yet; notes of others go.
-- args: since_s, limit. Returns ids.
local ids = {}
local noted = redis.call('ZRANGEBYSCORE', UNPUBLISHED, '-inf', now() - args.since_s, 'LIMIT', 0, args.limit)
for _, member in ipairs(noted) do
  local id, num_retries = string.match(member, '^([%w_-]+) (%d+)$')
  local held = id and redis.pcall('HMGET', key('job', id), 'status', 'num_retries')
  if held and (held.err or held[1] == 'queued' and held[2] == num_retries) then
    ids[#ids + 1] = id
  else
    redis.call('ZREM', UNPUBLISHED, member)
  end
end
return ids
