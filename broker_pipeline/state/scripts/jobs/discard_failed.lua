-- Forgets a failed job. args: job_id, record_fields.
-- Returns {0} when there is no such job, {1, record, spec} when it had failed, {2, record} when it has not.
local id = args.job_id
local status, spec = unpack(redis.call('HMGET', key('job', id), 'status', 'spec'))
if not status or status == 'discarded' then return {0} end
local shown = record(id)
if status ~= 'failed' then return {2, shown} end
bury(id)
return {1, shown, spec}
