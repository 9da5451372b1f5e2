-- Lists what stands where records of live workers should; names without anything leave the set.
-- KEYS: workers, pipelines. args: keys (worker). Returns each name and its record, '' for something else than a string.
local WORKERS = KEYS[1]
local rows = {}
for _, name in ipairs(redis.call('SMEMBERS', WORKERS)) do
  if redis.call('EXISTS', key('worker', name)) == 1 then
    rows[#rows + 1] = {name, text(key('worker', name)) or ''}
  else
    redis.call('SREM', WORKERS, name)
  end
end
return rows
