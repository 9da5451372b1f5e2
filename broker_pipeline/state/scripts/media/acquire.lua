-- Lets a job refer to bytes that are known. args: sha256, job_id. Returns the object's name, or false.
local name = redis.call('GET', key('media', args.sha256))
if name then refer(args.sha256, args.job_id) end
return name
