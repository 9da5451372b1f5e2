-- Lets a job refer to bytes that are known. args: sha256, job_id; upload, after_s: the name under which others will
-- be uploaded, where they will, and the seconds that this may take. Returns the object's name, or false.
local name = object_of(args.sha256)
if name then
  refer(args.sha256, args.job_id)
elseif args.upload then
  redis.call('ZADD', DOOMED, now() + args.after_s, args.upload)
end
return name
