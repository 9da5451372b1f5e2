-- Records a new job as queued, or finds the one that was submitted before with this idempotency key.
-- args: those of `create`, record_fields. Returns {job id, 1 when it is this job, record}.
local id, name = args.job_id, args.idempotency_key
sweep()
if name then
  local other = text(name)
  if other and other ~= id and redis.call('EXISTS', key('job', other)) == 1 then return {other, 0, record(other)} end
  redis.call('SET', name, id)  -- until the job has ended, and then for as long as its result
end
if redis.call('EXISTS', key('job', id)) == 0 then
  redis.call('ZADD', UNPUBLISHED, now(), id .. ' ' .. args.num_retries)  -- until its sender knows it in the queue
  create()
end
return {id, 1, record(id)}
