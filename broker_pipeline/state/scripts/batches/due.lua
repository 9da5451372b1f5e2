-- Lists batches that somebody has to see to, in turns over tenants: those first of which fewest are carried on, then
-- those that were last carried on longest ago; of one tenant the most urgent first. args: limit, num_taken: how many of
-- them are carried on from now. Returns {batch id, how many of its tenant are carried on before it} of each.
-- Looks at what is carried on and at as many tenants more as there may be in the list, however many batches wait.
local waiting, num_carried, last = {}, {}, {}
local function is_carried(batch_id, tenant)
  if not tenant or redis.call('EXISTS', key('lease', batch_id)) == 0 then return false end
  num_carried[tenant] = (num_carried[tenant] or 0) + 1
  return true
end
-- A build that kept all batches there may run still.
for _, batch_id in ipairs(redis.call('ZRANGE', ACTIVE, 0, 999)) do
  redis.call('ZREM', ACTIVE, batch_id)
  wait(batch_id)
end
local carried = redis.call('ZRANGE', CARRIED, 0, -1)
for _, batch_id in ipairs(carried) do
  if not is_carried(batch_id, redis.call('HGET', key('batch', batch_id), 'tenant')) then wait(batch_id) end
end
for _, tenant in ipairs(redis.call('ZRANGE', TURNS, 0, args.limit + #carried)) do
  set_aside(key('waiting', tenant), 'zset', 7 * 24 * 3600)
  local batch_ids = redis.call('ZRANGE', key('waiting', tenant), 0, args.limit - 1)
  last[tenant] = tonumber(redis.call('ZSCORE', TURNS, tenant))
  if #batch_ids == 0 and not num_carried[tenant] then redis.call('ZREM', TURNS, tenant) end
  for _, batch_id in ipairs(batch_ids) do
    if is_carried(batch_id, tenant) then carry(batch_id, tenant) else waiting[#waiting + 1] = {batch_id, tenant} end
  end
  num_carried[tenant] = num_carried[tenant] or 0
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
  if #due <= args.num_taken then
    carry(batch_id, tenant)
    redis.call('ZADD', TURNS, now(), tenant)
  end
end
return due
