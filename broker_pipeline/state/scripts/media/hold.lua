-- Lets a job's references stay until they are released. args: job_id, sha256s.
for _, sha in ipairs(args.sha256s) do redis.call('ZREM', KEPT, args.job_id .. ' ' .. sha) end
return 1
