-- Lists the records of live workers; names without one leave the set.
-- KEYS: workers, pipelines. args: keys (worker). Returns the records.
local WORKERS = KEYS[1]
local records = {}
for _, name in ipairs(redis.call('SMEMBERS', WORKERS)) do
  local held = redis.call('GET', key('worker', name))
  if held then records[#records + 1] = held else redis.call('SREM', WORKERS, name) end
end
return records
