-- Queues a job that has failed or was cancelled once more, and notes that it may not be in the queue yet.
-- args: job_id, spec, num_retries that the job has then, record_fields.
-- Returns {0} when there is no such job, {1, record} when it has been sent again so often, by this call or an equal one
-- before, {2, record} when it cannot be.
local id = args.job_id
local status, held = unpack(redis.call('HMGET', key('job', id), 'status', 'num_retries'))
if not status or status == 'discarded' then return {0} end
held = tonumber(held or '0')
if held == args.num_retries then return {1, record(id)} end
if held ~= args.num_retries - 1 or (status ~= 'failed' and status ~= 'cancelled') then return {2, record(id)} end
start_over()
redis.call('ZADD', UNPUBLISHED, now(), id .. ' ' .. args.num_retries)
return {1, record(id)}
