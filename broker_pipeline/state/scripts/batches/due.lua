-- Lists batches that somebody has to see to, the most urgent first. args: limit.
local due = {}
for _, batch_id in ipairs(redis.call('ZRANGE', ACTIVE, 0, -1)) do
  local status, paused = unpack(redis.call('HMGET', key('batch', batch_id), 'status', 'paused'))
  if not status then
    redis.call('ZREM', ACTIVE, batch_id)
  elseif paused ~= '1' and redis.call('EXISTS', key('lease', batch_id)) == 0 then
    due[#due + 1] = batch_id
    if #due == args.limit then return due end
  end
end
return due
