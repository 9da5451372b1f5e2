-- Lists batches that somebody has to see to, in turns over tenants: those first of which fewest are carried on, then
-- those that were last carried on longest ago; of one tenant the most urgent first. args: limit, num_taken: how many of
-- them are carried on from now. Returns {batch id, how many of its tenant are carried on before it} of each.
local waiting, num_carried, last = {}, {}, {}
for _, batch_id in ipairs(redis.call('ZRANGE', ACTIVE, 0, -1)) do
  local status, paused, tenant, carried_at =
    unpack(redis.call('HMGET', key('batch', batch_id), 'status', 'paused', 'tenant', 'carried_at'))
  if not status then
    redis.call('ZREM', ACTIVE, batch_id)
  else
    last[tenant] = math.max(last[tenant] or 0, tonumber(carried_at or 0))
    num_carried[tenant] = num_carried[tenant] or 0
    if redis.call('EXISTS', key('lease', batch_id)) == 1 then
      num_carried[tenant] = num_carried[tenant] + 1
    elseif paused ~= '1' then
      waiting[#waiting + 1] = {batch_id, tenant}
    end
  end
end
local function goes_before(one, other)
  if num_carried[one] ~= num_carried[other] then return num_carried[one] < num_carried[other] end
  return last[one] < last[other]
end
local due = {}
while #due < args.limit and #waiting > 0 do
  local first = 1
  for index, batch in ipairs(waiting) do
    if goes_before(batch[2], waiting[first][2]) then first = index end
  end
  local batch_id, tenant = unpack(table.remove(waiting, first))
  due[#due + 1] = {batch_id, num_carried[tenant]}
  num_carried[tenant] = num_carried[tenant] + 1
  if #due <= args.num_taken then redis.call('HSET', key('batch', batch_id), 'carried_at', now()) end
end
return due
