-- Forgets a job that was never begun. args: job_id. Returns 1 when it was there.
local id = args.job_id
local status, attempt = unpack(redis.call('HMGET', key('job', id), 'status', 'attempt'))
if status ~= 'queued' or attempt ~= '0' then return 0 end
free_idempotency_key(id)
forget(id)
return 1
