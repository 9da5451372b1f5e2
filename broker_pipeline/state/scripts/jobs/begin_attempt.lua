-- Takes the next attempt of a job. Every call takes a number of its own; those handed out before are void from then on.
-- args: those of `create`. Returns {attempt, cancelled, finished, failed, token entries}; what is finished may have
-- been so in an earlier sending of the job, which is over whatever became of it.
--
--     num_retries in Redis    that of the message
--     the same                                       a further attempt
--     higher                  of an earlier sending  finished
--     lower                   Redis lost the request   granted now
local id = args.job_id
local job = key('job', id)
if redis.call('EXISTS', job) == 0 then create() end
local status, attempt, held = unpack(redis.call('HMGET', job, 'status', 'attempt', 'num_retries'))
held = tonumber(held or '0')
if held > args.num_retries then return {tonumber(attempt), 0, 1, 0, {}} end
if held < args.num_retries and (status == 'failed' or status == 'cancelled') then
  start_over()
  status = 'queued'
end
if FINAL[status] then return {tonumber(attempt), 0, 1, status == 'failed' and 1 or 0, {}} end
redis.call('HSET', job, 'num_retries', args.num_retries, 'spec', args.spec)
attempt = redis.call('HINCRBY', job, 'attempt', 1)
redis.call('HSETNX', job, 'started_at', not_before(job, 'created_at'))
move(id, 'running')
return {attempt, redis.call('HEXISTS', job, 'cancel'), 0, 0, redis.call('LRANGE', key('tokens', id), 0, -1)}
