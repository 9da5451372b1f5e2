-- Notes that a job which was sent again is in the queue. args: job_id, num_retries.
return redis.call('ZREM', UNPUBLISHED, args.job_id .. ' ' .. args.num_retries)
