-- Forgets a failed job. args: job_id, record_fields.
-- Returns {0} when there is no such job, {1, record, spec} when it had failed, {2, record} when it has not.
local TOMBSTONE_S = 24 * 3600  -- how long it is remembered, lest a message of it that comes late brings it back
local id = args.job_id
local job = key('job', id)
local status, spec, idempotency, attempt, num_retries =
  unpack(redis.call('HMGET', job, 'status', 'spec', 'idempotency', 'attempt', 'num_retries'))
if not status or status == 'discarded' then return {0} end
local shown = record(id)
if status ~= 'failed' then return {2, shown} end
free_idempotency_key(idempotency, id)
forget(id)
redis.call('HSET', job, 'status', 'discarded', 'attempt', attempt, 'num_retries', num_retries or 0)
redis.call('EXPIRE', job, TOMBSTONE_S)
return {1, shown, spec}
