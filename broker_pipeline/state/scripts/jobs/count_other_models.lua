-- Counts running jobs that have tokens of another model. args: fingerprint.
local count = 0
for _, id in ipairs(redis.call('ZRANGE', key('status', 'running'), 0, -1)) do
  local is_other = redis.pcall('HGET', key('job', id), 'fingerprint') ~= args.fingerprint  -- or nobody's
  if is_other and redis.call('EXISTS', key('tokens', id)) == 1 then count = count + 1 end
end
return count
