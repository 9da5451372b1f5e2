-- Ends references that were acquired long ago for a job that nobody knows. args: limit. Returns how many it looked at.
local due = redis.call('ZRANGEBYSCORE', ACQUIRED, '-inf', now(), 'LIMIT', 0, args.limit)
for _, member in ipairs(due) do
  local holder, sha = string.match(member, '^(%S+) (%S+)$')
  redis.call('ZREM', ACQUIRED, member)
  local job_id = holder and string.match(holder, '^[^.]+')  -- a retried job's reference is held by `job.number`
  if job_id and redis.call('EXISTS', key('job', job_id)) == 0 then release(sha, holder) end
end
return #due
