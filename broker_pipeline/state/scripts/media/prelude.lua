-- Stands before every script about media references: how one begins and ends.
-- KEYS: unreferenced, doomed, kept, acquired. args of all: keys (media, media_jobs, job),
-- upload_s: how long a job of a new reference may be unknown.
-- A reference is a member `job sha256` of `kept` and `acquired`.
local UNREFERENCED, DOOMED, KEPT, ACQUIRED = unpack(KEYS)

local function refer(sha, job)
  redis.call('SADD', key('media_jobs', sha), job)
  redis.call('ZADD', ACQUIRED, now() + args.upload_s, job .. ' ' .. sha)
  redis.call('ZREM', UNREFERENCED, sha)
end

local function release(sha, job)
  local jobs = key('media_jobs', sha)
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
    release(sha, job)
  end
  return #members
end
