"""The Lua scripts that change state in Redis.

Each is one atomic step, guarded so that doing it again changes nothing: a client that got no answer may repeat its
call. They use commands of Redis 6.2 only, and Redis's own clock. Key names come in as templates of `redis_keys` with
`@` for the id, so that names stay in one place; for the same reason they are for one Redis (with replicas, with
Sentinel), not for a Redis Cluster.

A job's way through the sorted sets:

    create ──► jobs, jobs:queued ──► jobs, jobs:running ──► jobs, jobs:succeeded, expiry ──► (forgotten)
                         ▲                                       jobs:failed
                         └───── sent again ─────────────────     jobs:cancelled
"""

NUM_SWEPT_PER_CALL = 16
NUM_PAST_ENDS = 10
"""Earlier ends that a job's record keeps."""

# Shared by the scripts about jobs. KEYS: jobs, expiry, counts. ARGV: templates of job, tokens and status keys,
# seconds that finished jobs are kept. Further arguments start at 5.
JOB_PRELUDE = f"""
local JOBS, EXPIRY, COUNTS = KEYS[1], KEYS[2], KEYS[3]
local TTL_S = tonumber(ARGV[4])
local FINAL = {{succeeded = true, failed = true, cancelled = true, discarded = true}}

local function named(template, id) return (string.gsub(template, '@', id)) end
local function job_key(id) return named(ARGV[1], id) end
local function tokens_key(id) return named(ARGV[2], id) end
local function status_key(status) return named(ARGV[3], status) end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end

-- Clocks differ: no step of a job is shown as earlier than the one before it.
local function not_before(job, field)
  return string.format('%.6f', math.max(now(), tonumber(redis.call('HGET', job, field) or '0')))
end

local function record(id)
  return redis.call('HMGET', job_key(id), 'status', 'created_at', 'started_at', 'finished_at', 'attempt',
                    'metadata', 'result', 'error', 'num_retries', 'failures')
end

local function create(id, spec, created_at, metadata, num_retries, idempotency)
  redis.call('HSET', job_key(id), 'status', 'queued', 'spec', spec, 'created_at', created_at,
             'metadata', metadata, 'attempt', '0', 'num_retries', num_retries, 'idempotency', idempotency)
  redis.call('ZADD', JOBS, created_at, id)
  redis.call('ZADD', status_key('queued'), created_at, id)
  redis.call('HINCRBY', COUNTS, 'queued', 1)
end

local function move(id, status)
  local job = job_key(id)
  local old, created_at = unpack(redis.call('HMGET', job, 'status', 'created_at'))
  if old == status then return end
  redis.call('HSET', job, 'status', status)
  redis.call('ZREM', status_key(old), id)
  redis.call('ZADD', status_key(status), created_at, id)
  redis.call('HINCRBY', COUNTS, old, -1)
  redis.call('HINCRBY', COUNTS, status, 1)
end

local function finish(id, status, result, failure)
  local job = job_key(id)
  if result ~= '' then redis.call('HSET', job, 'result', result) end
  if failure ~= '' then redis.call('HSET', job, 'error', failure) end
  redis.call('HSET', job, 'finished_at', not_before(job, 'started_at'))
  move(id, status)
  redis.call('EXPIRE', job, TTL_S)
  redis.call('EXPIRE', tokens_key(id), TTL_S)
  redis.call('ZADD', EXPIRY, string.format('%.6f', now() + TTL_S), id)
end

-- A job that has ended is queued once more: its end goes into its history, one line of JSON each.
local function start_over(id, spec, num_retries)
  local job = job_key(id)
  local status, attempt, finished_at, failure, failures =
    unpack(redis.call('HMGET', job, 'status', 'attempt', 'finished_at', 'error', 'failures'))
  local past = '{{"status":"' .. status .. '","attempt":' .. attempt .. ',"finished_at":' .. finished_at
               .. (failure and ',"error":' .. failure or '') .. '}}'
  failures = failures and failures .. '\\n' .. past or past
  local _, num_older = string.gsub(failures, '\\n', '\\n')
  if num_older >= {NUM_PAST_ENDS} then failures = string.sub(failures, string.find(failures, '\\n', 1, true) + 1) end
  redis.call('HDEL', job, 'started_at', 'finished_at', 'result', 'error', 'cancel')
  redis.call('HSET', job, 'spec', spec, 'num_retries', num_retries, 'failures', failures)
  redis.call('DEL', tokens_key(id))
  redis.call('PERSIST', job)
  redis.call('ZREM', EXPIRY, id)
  move(id, 'queued')
end

local function forget(id)
  redis.call('DEL', job_key(id), tokens_key(id))
  redis.call('ZREM', JOBS, id)
  redis.call('ZREM', EXPIRY, id)
  for _, status in ipairs({{'queued', 'running', 'succeeded', 'failed', 'cancelled'}}) do
    redis.call('ZREM', status_key(status), id)
  end
end

local function sweep()
  local due = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', string.format('%.6f', now()), 'LIMIT', 0,
                         {NUM_SWEPT_PER_CALL})
  for _, id in ipairs(due) do forget(id) end
  return #due
end
"""

# KEYS[4]: the idempotency key, or the job's own key where there is none.
# ARGV[5..]: job id, spec, created_at, metadata, num_retries, whether there is an idempotency key ('1').
# Returns {job id, 1 when it is this job, record}.
CREATE_JOB = (
    JOB_PRELUDE
    + """
local id, spec, created_at, metadata, num_retries, has_key = unpack(ARGV, 5, 10)
has_key = has_key == '1'
sweep()
if has_key then
  local other = redis.call('GET', KEYS[4])
  if other and other ~= id and redis.call('EXISTS', job_key(other)) == 1 then
    return {other, 0, record(other)}
  end
  redis.call('SET', KEYS[4], id, 'EX', TTL_S)
end
if redis.call('EXISTS', job_key(id)) == 0 then
  create(id, spec, created_at, metadata, num_retries, has_key and KEYS[4] or '')
end
return {id, 1, record(id)}
"""
)

# ARGV[5]: job id. Forgets a job that nobody has begun. Returns 1 when it was there.
DISCARD_JOB = (
    JOB_PRELUDE
    + """
local id = ARGV[5]
local status, attempt, idempotency = unpack(redis.call('HMGET', job_key(id), 'status', 'attempt', 'idempotency'))
if status ~= 'queued' or attempt ~= '0' then return 0 end
redis.call('HINCRBY', COUNTS, 'queued', -1)
if idempotency and idempotency ~= '' and redis.call('GET', idempotency) == id then
  redis.call('DEL', idempotency)
end
forget(id)
return 1
"""
)

# ARGV[5..]: job id, spec, created_at, metadata, num_retries. Every call takes a number of its own; numbers handed out
# before are void from then on. Returns {attempt, cancelled, finished, failed, token entries}; what is finished may have
# been so in an earlier sending of the job, which is over whatever became of it.
#
#     num_retries in Redis    that of the message
#     the same                                       a further attempt
#     higher                  of an earlier sending  finished
#     lower                   Redis lost the request   granted now
BEGIN_ATTEMPT = (
    JOB_PRELUDE
    + """
local id, spec, num_retries = ARGV[5], ARGV[6], tonumber(ARGV[9])
local job = job_key(id)
if redis.call('EXISTS', job) == 0 then create(id, spec, ARGV[7], ARGV[8], ARGV[9], '') end
local status, attempt, held = unpack(redis.call('HMGET', job, 'status', 'attempt', 'num_retries'))
held = tonumber(held or '0')
if held > num_retries then return {tonumber(attempt), 0, 1, 0, {}} end
if held < num_retries and (status == 'failed' or status == 'cancelled') then
  start_over(id, spec, num_retries)
  status = 'queued'
end
if FINAL[status] then return {tonumber(attempt), 0, 1, status == 'failed' and 1 or 0, {}} end
redis.call('HSET', job, 'num_retries', num_retries, 'spec', spec)
attempt = redis.call('HINCRBY', job, 'attempt', 1)
if redis.call('HEXISTS', job, 'started_at') == 0 then
  redis.call('HSET', job, 'started_at', not_before(job, 'created_at'))
end
move(id, 'running')
local cancel = redis.call('HEXISTS', job, 'cancel')
return {attempt, cancel, 0, 0, redis.call('LRANGE', tokens_key(id), 0, -1)}
"""
)

# Tokens of one job come as lines: `id attempt start`, then an entry each (JSON has no line breaks in it).
#
#     start == length                    append                    1
#     the same entries stand at start    an earlier call did it    1
#     anything else                      refused                   0
_COMMIT_PRELUDE = (
    JOB_PRELUDE
    + """
local function commit(id, attempt, start, entries)
  local status, current = unpack(redis.call('HMGET', job_key(id), 'status', 'attempt'))
  if current ~= attempt then return 0 end
  local tokens = tokens_key(id)
  if redis.call('LLEN', tokens) == start then
    if status ~= 'running' then return 0 end
    for first = 1, #entries, 1000 do  -- unpack has a limit
      redis.call('RPUSH', tokens, unpack(entries, first, math.min(first + 999, #entries)))
    end
    return 1
  end
  local held = redis.call('LRANGE', tokens, start, start + #entries - 1)
  if #held ~= #entries then return 0 end
  for i = 1, #entries do
    if held[i] ~= entries[i] then return 0 end
  end
  return 1
end

local function commit_lines(text)
  local lines = string.gmatch(text, '[^\\n]+')
  local id, attempt, start = string.match(lines(), '^(%S+) (%S+) (%S+)$')
  local entries = {}
  for entry in lines do entries[#entries + 1] = entry end
  return commit(id, attempt, tonumber(start), entries)
end
"""
)

# ARGV[5..]: tokens of one job each. Returns 1 or 0 per job.
COMMIT_TOKENS = (
    _COMMIT_PRELUDE
    + """
local done = {}
for i = 5, #ARGV do done[#done + 1] = commit_lines(ARGV[i]) end
return done
"""
)

# ARGV[5..]: job id, attempt, status, result or '', error or '', the last tokens or ''.
# Returns 1 when the job ended as this call says, be it now or by an earlier, equal call; else 0.
FINISH_JOB = (
    _COMMIT_PRELUDE
    + """
local id, attempt, status, result, failure = ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local held, current, held_result, held_failure =
  unpack(redis.call('HMGET', job_key(id), 'status', 'attempt', 'result', 'error'))
if current ~= attempt then return 0 end
if FINAL[held] then
  local same = held == status and (held_result or '') == result and (held_failure or '') == failure
  return same and 1 or 0
end
if held ~= 'running' then return 0 end
if ARGV[10] ~= '' and commit_lines(ARGV[10]) == 0 then return 0 end
finish(id, status, result, failure)
sweep()
return 1
"""
)

# ARGV[5]: job id. Returns 0 when there is no such job.
CANCEL_JOB = (
    JOB_PRELUDE
    + """
local id = ARGV[5]
local status = redis.call('HGET', job_key(id), 'status')
if not status then return 0 end
if status == 'queued' then
  finish(id, 'cancelled', '', '')
elseif status == 'running' then
  redis.call('HSET', job_key(id), 'cancel', '1')
end
return 1
"""
)

# Forgets finished jobs whose time has come. Returns how many.
SWEEP_JOBS = JOB_PRELUDE + "return sweep()"

# KEYS: worker record, set of names, set of pipelines. ARGV: record, instance, time to live in ms, name, pipeline.
# Returns {1} or, when another live instance has the name, {0, its record, ms until that record ends}.
REGISTER_WORKER = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).instance ~= ARGV[2] then return {0, held, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[5])
return {1}
"""

# KEYS: worker record, set of names. ARGV: instance, name.
RELEASE_WORKER = """
local held = redis.call('GET', KEYS[1])
if held and cjson.decode(held).instance ~= ARGV[1] then return 0 end
redis.call('SREM', KEYS[2], ARGV[2])
return redis.call('DEL', KEYS[1])
"""

# KEYS: set of names. ARGV: template of worker keys. Returns the records; names without one leave the set.
LIST_WORKERS = """
local records = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local held = redis.call('GET', (string.gsub(ARGV[1], '@', name)))
  if held then records[#records + 1] = held else redis.call('SREM', KEYS[1], name) end
end
return records
"""

# KEYS: lease, epoch. ARGV: instance, time to live in ms, an epoch to exceed.
# Returns {1, epoch}, or {0, ms until the lease ends}.
#
# An epoch is at least the time in hundredths of a second, so that a Redis that lost everything does not hand out an
# old one, which stages would refuse for ever.
ACQUIRE_LEASE = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return {0, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local epoch = tonumber(redis.call('GET', KEYS[2]) or '0')
if not holder then
  local seconds, micros = unpack(redis.call('TIME'))
  local hundredths = tonumber(seconds) * 100 + math.floor(tonumber(micros) / 10000)
  epoch = math.max(epoch + 1, hundredths, tonumber(ARGV[3]) + 1)
  redis.call('SET', KEYS[2], string.format('%.0f', epoch))
end
return {1, epoch}
"""

# KEYS: lease. ARGV: instance, time to live in ms. Returns 1 while the lease is this instance's.
RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""

# KEYS: lease. ARGV: instance.
RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
