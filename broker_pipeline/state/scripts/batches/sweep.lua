-- Forgets files and batches whose time has come, and gives up parts that no file has.
-- args: limit, keep_s: how much longer a file is kept that a batch reads; claim_s: for so long nobody else is given what
-- this returns, the names of parts to delete.
local time = now()
for _, file_id in ipairs(redis.call('ZRANGEBYSCORE', FILES_EXPIRY, '-inf', time, 'LIMIT', 0, args.limit)) do
  if tonumber(redis.call('HGET', key('file', file_id), 'num_readers') or '0') > 0 then
    redis.call('ZADD', FILES_EXPIRY, time + args.keep_s, file_id)
  else
    forget_file(file_id)
  end
end
for _, batch_id in ipairs(redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', time, 'LIMIT', 0, args.limit)) do
  local batch = key('batch', batch_id)
  redis.call('ZREM', key('batches', redis.call('HGET', batch, 'tenant') or ''), batch_id)
  redis.call('ZREM', EXPIRY, batch_id)
  redis.call('ZREM', UNTOLD, batch_id)
  redis.call('DEL', batch)
end
local names = redis.call('ZRANGEBYSCORE', DOOMED, '-inf', time, 'LIMIT', 0, args.limit)
for _, name in ipairs(names) do redis.call('ZADD', DOOMED, time + args.claim_s, name) end
return names
