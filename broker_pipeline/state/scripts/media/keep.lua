-- Lets a job's references end by themselves; of more than `limit` such references the oldest end at once.
-- args: job_id, sha256s, for_s, limit.
local ends_at = now() + args.for_s
for _, sha in ipairs(args.sha256s) do redis.call('ZADD', KEPT, ends_at, args.job_id .. ' ' .. sha) end
local excess = redis.call('ZCARD', KEPT) - args.limit
if excess > 0 then release_kept(redis.call('ZRANGE', KEPT, 0, math.min(excess, 1000) - 1)) end
return 1
