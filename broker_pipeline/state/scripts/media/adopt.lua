-- Lets a job refer to an object that was uploaded.
-- args: sha256, job_id, name, replaces: the name that it takes the place of, where there is one.
-- Returns the name to use; '' when the upload came too late.
local media, name = key('media', args.sha256), args.name
local current = object_of(args.sha256)
if current and current ~= args.replaces and current ~= name then
  name = current
elseif current ~= name then
  if redis.call('ZREM', DOOMED, name) == 0 then return '' end
  redis.call('SET', media, name)
end
refer(args.sha256, args.job_id)
return name
