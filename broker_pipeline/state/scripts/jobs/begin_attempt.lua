-- Takes the next attempt of a job. Every call takes a number of its own; those handed out before are void from then on.
-- args: those of `create`, fingerprint, restarts, held: who has it from now on; lease and instance: no other instance may
-- have that lease, so that a late request takes no number from the conductor that has taken over. Returns {attempt,
-- cancelled, finished, failed, token entries, fingerprint of another model that they are or were of}, or {-1} where
-- another has the lease; what is finished may have been so in an earlier sending of the job, which is over whatever
-- became of it.
--
--     num_retries in Redis    that of the message
--     the same                                       a further attempt
--     higher                  of an earlier sending  finished
--     lower                   Redis lost the request   granted now
--
-- Tokens of another model are dropped, or left for the job's end: where it is cancelled, and without `restarts`.
local holder = args.lease and text(args.lease)
if holder and holder ~= args.instance then return {-1} end
local id = args.job_id
local job = key('job', id)
if redis.call('EXISTS', job) == 0 then create() end
local status, attempt, held, created_at, started_at, tenant, model, cancelled =
  unpack(redis.call('HMGET', job, 'status', 'attempt', 'num_retries', 'created_at', 'started_at', 'tenant',
                    'fingerprint', 'cancel'))
held = tonumber(held or '0')
if held > args.num_retries then return {tonumber(attempt), 0, 1, 0, {}} end
if held < args.num_retries and (status == 'failed' or status == 'cancelled') then
  start_over()
  status, started_at, model, cancelled = 'queued', false, false, false
end
if FINAL[status] then return {tonumber(attempt), 0, 1, status == 'failed' and 1 or 0, {}} end
redis.call('ZREM', UNPUBLISHED, id .. ' ' .. args.num_retries)
attempt = redis.call('HINCRBY', job, 'attempt', 1)
reindex(id, tenant, created_at, status, 'running')
local is_other = model ~= args.fingerprint and redis.call('EXISTS', key('tokens', id)) == 1
local is_kept = is_other and (cancelled or not args.restarts)
if is_other and not is_kept then drop_tokens(id, attempt) end
local begun = {'status', 'running', 'num_retries', args.num_retries, 'spec', args.spec, 'held', args.held or '',
               'started_at', started_at or not_before(created_at)}
if not is_kept then begun[#begun + 1] = 'fingerprint'; begun[#begun + 1] = args.fingerprint end
redis.call('HSET', job, unpack(begun))
local entries = redis.call('LRANGE', key('tokens', id), 0, -1)
return {attempt, cancelled and 1 or 0, 0, 0, entries, is_other and (model or '')}
