-- Stands before every script about jobs: the steps that they are made of.
-- KEYS: jobs, expiry, counts, unpublished. args of all: keys (job, tokens, status, tenant), result_ttl_s.
-- Each writes indexes first and the job's record last: where an index turns out to be none, it can begin again.
local JOBS, EXPIRY, COUNTS, UNPUBLISHED = unpack(KEYS)
local NUM_SWEPT_PER_CALL = 16
local NUM_PAST_ENDS = 10  -- that a job's record keeps
local FINAL = {succeeded = true, failed = true, cancelled = true, discarded = true}

-- Clocks differ: no step of a job is shown as earlier than the one before it.
local function not_before(earlier) return string.format('%.6f', math.max(now(), tonumber(earlier or '0'))) end

-- Indexes of one tenant's jobs, for lists and limits: of all, and by status. No job fails over one that is garbled.
local function index(tenant, status, created_at, id)
  if (tenant or '') == '' then return end
  redis.pcall('ZADD', key('tenant', tenant), created_at, id)
  redis.pcall('ZADD', key('tenant', tenant) .. ':' .. status, created_at, id)
end

local function unindex(tenant, status, id)
  if (tenant or '') ~= '' then redis.pcall('ZREM', key('tenant', tenant) .. ':' .. status, id) end
end

local function tenant_of(id)
  local held = redis.pcall('HGET', key('job', id), 'tenant')
  return type(held) == 'string' and held or ''
end

-- What stands in EXPIRY for a job: its id, and whose it is, since its record may be gone by then.
local function expiring(id, tenant) return tenant == '' and id or id .. ' ' .. tenant end

-- args: record_fields.
local function record(id) return redis.call('HMGET', key('job', id), unpack(args.record_fields)) end

-- args: job_id, spec, created_at, metadata, num_retries, tenant; idempotency_key where there is one.
local function create()
  local id = args.job_id
  redis.call('ZADD', JOBS, args.created_at, id)
  redis.call('ZADD', key('status', 'queued'), args.created_at, id)
  index(args.tenant, 'queued', args.created_at, id)
  local more = {tenant = '', metadata = '{}', idempotency = ''}  -- which is what nothing stands for
  local fields = {'status', 'queued', 'spec', args.spec, 'created_at', args.created_at, 'attempt', 0,
                  'num_retries', args.num_retries}
  for name, nothing in pairs(more) do
    local value = args[name == 'idempotency' and 'idempotency_key' or name] or nothing
    if value ~= nothing then fields[#fields + 1] = name; fields[#fields + 1] = value end
  end
  redis.call('HSET', key('job', id), unpack(fields))
end

-- Moves a job from one status to another in the indexes; its record is the caller's to write, after this.
local function reindex(id, tenant, created_at, old, status)
  if old == status then return end
  unindex(tenant, old, id)
  index(tenant, status, created_at, id)
  redis.call('ZREM', key('status', old), id)
  redis.call('ZADD', key('status', status), created_at, id)
  if FINAL[old] then redis.call('HINCRBY', COUNTS, old, -1) end
  if FINAL[status] then redis.call('HINCRBY', COUNTS, status, 1) end
end

-- The name of a job's idempotency key, where there is one and it is this job's.
local function own(name, id) return name and name ~= '' and text(name) == id and name end

local function free_idempotency_key(id)
  local name = redis.call('HGET', key('job', id), 'idempotency')
  if own(name, id) then redis.call('DEL', name) end
end

local function finish(id, status, result, failure)
  local job = key('job', id)
  local old, created_at, started_at, tenant, name =
    unpack(redis.call('HMGET', job, 'status', 'created_at', 'started_at', 'tenant', 'idempotency'))
  redis.call('ZADD', EXPIRY, now() + args.result_ttl_s, expiring(id, tenant or ''))
  if own(name, id) then redis.call('EXPIRE', name, args.result_ttl_s) end
  reindex(id, tenant, created_at, old, status)
  local ended = {'status', status, 'finished_at', not_before(started_at)}
  if result then ended[#ended + 1] = 'result'; ended[#ended + 1] = result end
  if failure then ended[#ended + 1] = 'error'; ended[#ended + 1] = failure end
  redis.call('HSET', job, unpack(ended))
  redis.call('HDEL', job, 'held')
  redis.call('EXPIRE', job, args.result_ttl_s)
  redis.call('EXPIRE', key('tokens', id), args.result_ttl_s)
end

-- A job's tokens begin anew, with an attempt.
local function drop_tokens(id, attempt)
  redis.call('DEL', key('tokens', id))
  redis.call('HSET', key('job', id), 'first_attempt', attempt)
end

-- A job that has ended is queued once more: its end goes into its history, one line of JSON each.
-- args: job_id, spec, num_retries.
local function start_over()
  local id = args.job_id
  local job = key('job', id)
  local status, attempt, finished_at, failure, failures, created_at, tenant, name =
    unpack(redis.call('HMGET', job, 'status', 'attempt', 'finished_at', 'error', 'failures', 'created_at', 'tenant',
                      'idempotency'))
  local past = '{"status":"' .. status .. '","attempt":' .. attempt .. ',"finished_at":' .. finished_at
               .. (failure and ',"error":' .. failure or '') .. '}'
  failures = failures and failures .. '\n' .. past or past
  local _, num_older = string.gsub(failures, '\n', '\n')
  if num_older >= NUM_PAST_ENDS then failures = string.sub(failures, string.find(failures, '\n', 1, true) + 1) end
  redis.call('HDEL', job, 'started_at', 'finished_at', 'result', 'error', 'cancel', 'fingerprint')
  redis.call('HSET', job, 'spec', args.spec, 'num_retries', args.num_retries, 'failures', failures)
  drop_tokens(id, attempt + 1)
  redis.call('PERSIST', job)
  if own(name, id) then redis.call('PERSIST', name) end
  redis.call('ZREM', EXPIRY, expiring(id, tenant or ''))
  reindex(id, tenant, created_at, status, 'queued')
  redis.call('HSET', job, 'status', 'queued')
end

local function forget(id, known_tenant)
  local tenant = known_tenant or tenant_of(id)
  redis.call('DEL', key('job', id), key('tokens', id))
  redis.call('ZREM', JOBS, id)
  redis.call('ZREM', EXPIRY, expiring(id, tenant))
  if tenant ~= '' then redis.pcall('ZREM', key('tenant', tenant), id) end
  for _, status in ipairs({'queued', 'running', 'succeeded', 'failed', 'cancelled'}) do
    redis.call('ZREM', key('status', status), id)
    unindex(tenant, status, id)
  end
end

-- Forgets a job that has ended, but that it was: a message of it that comes late must not bring it back.
local TOMBSTONE_S = 24 * 3600
local function bury(id)
  local job = key('job', id)
  local attempt, num_retries = unpack(redis.call('HMGET', job, 'attempt', 'num_retries'))
  free_idempotency_key(id)
  forget(id)
  redis.call('HSET', job, 'status', 'discarded', 'attempt', attempt, 'num_retries', num_retries or 0)
  redis.call('EXPIRE', job, TOMBSTONE_S)
end

local function sweep()
  local due = redis.call('ZRANGEBYSCORE', EXPIRY, '-inf', now(), 'LIMIT', 0, NUM_SWEPT_PER_CALL)
  for _, member in ipairs(due) do
    local id, tenant = string.match(member, '^(%S*) ?(.*)$')
    forget(id, tenant)
    redis.call('ZREM', EXPIRY, member)
  end
  return #due
end

-- Appends one job's tokens, item: job_id, attempt, start, num_tokens. The tokens themselves are the next lines of
-- ARGV[2] (JSON has no line breaks in it): in `args` they would be decoded a second time, and this is the script that
-- runs with every microbatch.
--
--     start == length                    append                    1
--     the same entries stand at start    an earlier call did it    1
--     anything else                      refused                   0
local next_line = ARGV[2] and string.gmatch(ARGV[2], '[^\n]+')
local function commit(item)
  local entries = {}
  for i = 1, item.num_tokens do entries[i] = next_line() end
  local status, current = unpack(redis.call('HMGET', key('job', item.job_id), 'status', 'attempt'))
  if tonumber(current) ~= item.attempt then return 0 end
  local tokens = key('tokens', item.job_id)
  if redis.call('LLEN', tokens) == item.start then
    if status ~= 'running' then return 0 end
    for first = 1, #entries, 1000 do  -- unpack has a limit
      redis.call('RPUSH', tokens, unpack(entries, first, math.min(first + 999, #entries)))
    end
    return 1
  end
  local held = redis.call('LRANGE', tokens, item.start, item.start + #entries - 1)
  if #held ~= #entries then return 0 end
  for i = 1, #entries do
    if held[i] ~= entries[i] then return 0 end
  end
  return 1
end
