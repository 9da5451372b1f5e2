-- Notes that the queue has a job. args: job_id, num_retries.
return redis.call('ZREM', UNPUBLISHED, args.job_id .. ' ' .. args.num_retries)
