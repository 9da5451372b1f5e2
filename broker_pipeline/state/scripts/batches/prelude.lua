-- Stands before every script about files and batches: the steps that they are made of.
-- KEYS: files_expiry, files_doomed, batches_carried, batches_turns, batches_expiry, batches_untold,
-- batches_active.
-- args of all: keys (file, parts, files, batch, done, offsets, batches, waiting, lease); of those that ask for the lease:
-- batch_id, instance.
-- A part is written as `name bytes chunk-bytes`; until a file has it, its name stands in `files_doomed`.
local FILES_EXPIRY, DOOMED, CARRIED, TURNS, EXPIRY, UNTOLD, ACTIVE = unpack(KEYS)
local FINAL = {completed = true, failed = true, expired = true, cancelled = true}

local function seconds() return math.floor(now()) end

-- Whether whoever asks has the batch's lease: nobody else changes what a run changes.
local function holds() return text(key('lease', args.batch_id)) == args.instance end

local function move(batch, status)
  redis.call('HSETNX', batch, status .. '_at', seconds())
  redis.call('HSET', batch, 'status', status)
end

-- A batch that has not ended waits for its tenant's turn, or is carried on by whoever has, or had, its lease; neither
-- while it is paused.
local function carry(batch_id, tenant)
  redis.call('ZREM', key('waiting', tenant), batch_id)
  redis.call('ZADD', CARRIED, now(), batch_id)
end

local function wait(batch_id)
  local status, paused, tenant, priority, created_at = unpack(redis.call('HMGET', key('batch', batch_id),
    'status', 'paused', 'tenant', 'priority', 'created_at'))
  redis.call('ZREM', CARRIED, batch_id)
  if not status or FINAL[status] or paused == '1' then return end
  redis.call('ZADD', key('waiting', tenant), priority * 1e10 + created_at, batch_id)
  redis.call('ZADD', TURNS, 'NX', now() - 1e10, tenant)  -- before all that had one
end

-- Gives parts to a file; false, and nothing is done, when one came so late that a sweep may have deleted it.
local function adopt(file_id, parts)
  for _, part in ipairs(parts) do
    if not redis.call('ZSCORE', DOOMED, string.match(part, '^%S+')) then return false end
  end
  for _, part in ipairs(parts) do
    redis.call('RPUSH', key('parts', file_id), part)
    redis.call('ZREM', DOOMED, string.match(part, '^%S+'))
  end
  return true
end

local function record_file(file_id, tenant, lives_s, fields)
  local time = seconds()
  redis.call('ZADD', key('files', tenant), now(), file_id)
  redis.call('ZADD', FILES_EXPIRY, time + lives_s, file_id)
  redis.call('HSET', key('file', file_id), 'tenant', tenant, 'created_at', time, 'expires_at', time + lives_s,
             unpack(fields))
end

-- Forgets a file; its bytes are deleted by the next sweep.
local function forget_file(file_id)
  local tenant = redis.call('HGET', key('file', file_id), 'tenant')
  for _, part in ipairs(redis.call('LRANGE', key('parts', file_id), 0, -1)) do
    redis.call('ZADD', DOOMED, now(), string.match(part, '^%S+'))
  end
  if tenant then redis.call('ZREM', key('files', tenant), file_id) end
  redis.call('ZREM', FILES_EXPIRY, file_id)
  redis.call('DEL', key('file', file_id), key('parts', file_id))
end
