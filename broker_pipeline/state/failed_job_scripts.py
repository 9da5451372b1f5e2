"""The Lua scripts about jobs that have failed. As those of `redis_scripts`, whose prelude they share.

A job that is sent again stands in `unpublished` until it is in the queue, so that a gateway that dies in between leaves
a note of it:

    failed | cancelled ──retry──► queued, unpublished ──publish──► queued ──► …
"""

from __future__ import annotations

from broker_pipeline.state.redis_scripts import JOB_PRELUDE

TOMBSTONE_S = 24 * 3600
"""How long a discarded job is remembered, lest a message of it that comes late brings it back."""

# KEYS[4]: unpublished. ARGV[5..]: job id, spec, num_retries that the job has then.
# Returns {0} when there is no such job, {1, record} when it has been sent again so often, by this call or an equal one
# before, {2, record} when it cannot be.
RETRY_JOB = (
    JOB_PRELUDE
    + """
local id, spec, num_retries = ARGV[5], ARGV[6], tonumber(ARGV[7])
local status, held = unpack(redis.call('HMGET', job_key(id), 'status', 'num_retries'))
if not status or status == 'discarded' then return {0} end
held = tonumber(held or '0')
if held == num_retries then return {1, record(id)} end
if held ~= num_retries - 1 or (status ~= 'failed' and status ~= 'cancelled') then return {2, record(id)} end
start_over(id, spec, num_retries)
redis.call('ZADD', KEYS[4], string.format('%.6f', now()), id .. ' ' .. num_retries)
return {1, record(id)}
"""
)

# KEYS[4]: unpublished. ARGV[5..]: job id, num_retries. The job is in the queue.
MARK_PUBLISHED = JOB_PRELUDE + "return redis.call('ZREM', KEYS[4], ARGV[5] .. ' ' .. ARGV[6])"

# KEYS[4]: unpublished. ARGV[5..]: seconds since when, most to return. Returns ids of queued jobs; notes of others go.
LIST_UNPUBLISHED = (
    JOB_PRELUDE
    + """
local ids = {}
local upper = string.format('%.6f', now() - tonumber(ARGV[5]))
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', upper, 'LIMIT', 0, ARGV[6])) do
  local id, num_retries = string.match(member, '^(%S+) (%S+)$')
  local status, held = unpack(redis.call('HMGET', job_key(id), 'status', 'num_retries'))
  if status == 'queued' and held == num_retries then
    ids[#ids + 1] = id
  else
    redis.call('ZREM', KEYS[4], member)
  end
end
return ids
"""
)

# ARGV[5]: job id. Returns {0} when there is no such job, {1, record, spec} when it had failed and is forgotten now,
# {2, record} when it is not a failed one.
DISCARD_FAILED_JOB = (
    JOB_PRELUDE
    + f"""
local id = ARGV[5]
local job = job_key(id)
local status, spec, idempotency = unpack(redis.call('HMGET', job, 'status', 'spec', 'idempotency'))
if not status or status == 'discarded' then return {{0}} end
local shown = record(id)
if status ~= 'failed' then return {{2, shown}} end
if idempotency and idempotency ~= '' and redis.call('GET', idempotency) == id then redis.call('DEL', idempotency) end
local attempt, num_retries = unpack(redis.call('HMGET', job, 'attempt', 'num_retries'))
forget(id)
redis.call('HSET', job, 'status', 'discarded', 'attempt', attempt, 'num_retries', num_retries or '0')
redis.call('EXPIRE', job, {TOMBSTONE_S})
return {{1, shown, spec}}
"""
)

# ARGV[5..]: job id, error. Fails a job that nobody can run. Returns its spec; false when it has ended or is unknown.
FAIL_UNREADABLE_JOB = (
    JOB_PRELUDE
    + """
local id = ARGV[5]
local status, spec = unpack(redis.call('HMGET', job_key(id), 'status', 'spec'))
if status ~= 'queued' and status ~= 'running' then return false end
finish(id, 'failed', '', ARGV[6])
return spec
"""
)
