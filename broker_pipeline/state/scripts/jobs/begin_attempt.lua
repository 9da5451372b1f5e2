-- Takes the next attempt of a job. Every call takes a number of its own; those handed out before are void from then on.
-- args: those of `create`, fingerprint, restarts, held: who has it from now on. Returns {attempt, cancelled, finished, failed, token entries,
-- fingerprint of another model that they are or were of}; what is finished may have been so in an earlier sending of the
-- job, which is over whatever became of it.
--
--     num_retries in Redis    that of the message
--     the same                                       a further attempt
--     higher                  of an earlier sending  finished
--     lower                   Redis lost the request   granted now
--
-- Tokens of another model are dropped, or left for the job's end: where it is cancelled, and without `restarts`.
local id = args.job_id
local job, tokens = key('job', id), key('tokens', id)
local function row()
  return unpack(redis.call('HMGET', job, 'status', 'attempt', 'num_retries', 'created_at', 'started_at', 'tenant',
                           'fingerprint', 'cancel'))
end

if redis.call('EXISTS', job) == 0 then create() end
local status, attempt, held, created_at, started_at, tenant, model, cancelled = row()
held = tonumber(held or '0')
if held > args.num_retries then return {tonumber(attempt), 0, 1, 0, {}} end
if held < args.num_retries and (status == 'failed' or status == 'cancelled') then
  start_over()
  status, attempt, held, created_at, started_at, tenant, model, cancelled = row()
  held = args.num_retries
end
if FINAL[status] then return {tonumber(attempt), 0, 1, status == 'failed' and 1 or 0, {}} end

attempt = redis.call('HINCRBY', job, 'attempt', 1)  -- which sees whether it is a number that can be counted on
local fields = {'status', 'running', 'held', args.held or ''}
local function set(name, value) fields[#fields + 1] = name; fields[#fields + 1] = value end
if held < args.num_retries then set('num_retries', args.num_retries); set('spec', args.spec) end
if not started_at then set('started_at', not_before(created_at)) end
local is_other = model ~= args.fingerprint and redis.call('EXISTS', tokens) == 1
local is_kept = is_other and (cancelled or not args.restarts)
if is_other and not is_kept then redis.call('DEL', tokens); set('first_attempt', attempt) end
if not is_kept then set('fingerprint', args.fingerprint) end
redis.call('ZREM', UNPUBLISHED, id .. ' ' .. args.num_retries)
reindex(id, status, 'running', created_at, tenant)
redis.call('HSET', job, unpack(fields))
return {attempt, cancelled and 1 or 0, 0, 0, redis.call('LRANGE', tokens, 0, -1), is_other and (model or '')}
