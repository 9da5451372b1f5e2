-- Ends a queued job and flags a running one. args: job_id. Returns 0 when there is no such job.
local id = args.job_id
local status = redis.call('HGET', key('job', id), 'status')
if not status then return 0 end
if status == 'queued' then
  finish(id, 'cancelled')
elseif status == 'running' then
  redis.call('HSET', key('job', id), 'cancel', 1)
end
return 1
