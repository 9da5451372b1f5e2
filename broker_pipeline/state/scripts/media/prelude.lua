-- Stands before every script about media references: how one begins and ends.
-- KEYS: unreferenced, doomed, kept, acquired. args of all: keys (media, media_jobs, job),
-- upload_s: how long a job of a new reference may be unknown.
-- A reference is a member `job sha256` of `kept` and `acquired`.
local ASIDE_S = 7 * 24 * 3600
local UNREFERENCED, DOOMED, KEPT, ACQUIRED = unpack(KEYS)

-- The name of stored bytes; false where there is none, or something that is none of theirs.
local function object_of(sha)
  local name = text(key('media', sha))
  return name and string.match(name, '^%x+%.[%w_-]+$') and string.sub(name, 1, #sha + 1) == sha .. '.' and name
end

local function jobs_of(sha)
  local jobs = key('media_jobs', sha)
  set_aside(jobs, 'set', ASIDE_S)
  return jobs
end

local function refer(sha, job)
  redis.call('SADD', jobs_of(sha), job)
  redis.call('ZADD', ACQUIRED, now() + args.upload_s, job .. ' ' .. sha)
  redis.call('ZREM', UNREFERENCED, sha)
end

local function release(sha, job)
  local jobs = jobs_of(sha)
  redis.call('ZREM', KEPT, job .. ' ' .. sha)
  redis.call('ZREM', ACQUIRED, job .. ' ' .. sha)
  if redis.call('SREM', jobs, job) == 1 and redis.call('SCARD', jobs) == 0
     and redis.call('EXISTS', key('media', sha)) == 1 then
    redis.call('ZADD', UNREFERENCED, now(), sha)
  end
end

local function release_kept(members)
  for _, member in ipairs(members) do
    local job, sha = string.match(member, '^(%S+) (%S+)$')
    if sha then release(sha, job) else redis.call('ZREM', KEPT, member) end
  end
  return #members
end
