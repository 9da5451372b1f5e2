-- Ends a job of which Redis holds something strange: that is moved out of the way, for somebody to look at, and a record
-- of the failed job takes its place. args: those of `create`, error, for_s: how long it is kept.
-- Returns 1; 0 when the job has ended before.
local id = args.job_id
local job, tokens = key('job', id), key('tokens', id)
local function held(field)
  local value = redis.pcall('HGET', job, field)
  return type(value) == 'string' and value
end
if FINAL[held('status')] then return 0 end
local attempt = string.match(held('attempt') or '', '^%d%d?%d?%d?%d?%d?$') or 0
args.idempotency_key = held('idempotency') or ''
for _, name in ipairs({job, tokens}) do set_aside(name, 'nothing', args.for_s) end
forget(id)
create()
redis.call('HSET', job, 'attempt', attempt)
finish(id, 'failed', nil, args.error)
return 1
