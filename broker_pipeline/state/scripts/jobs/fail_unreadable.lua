-- Fails a job that nobody can run. args: job_id, error. Returns its spec; false when it has ended or is unknown.
local id = args.job_id
local status, spec = unpack(redis.call('HMGET', key('job', id), 'status', 'spec'))
if status ~= 'queued' and status ~= 'running' then return false end
finish(id, 'failed', nil, args.error)
return spec
