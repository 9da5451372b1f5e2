-- Ends a job's references. args: job_id, sha256s.
for _, sha in ipairs(args.sha256s) do release(sha, args.job_id) end
return 1
