"""Which jobs need which stored bytes, in Redis.

    put ──► acquire: known? ── yes ──────────────────────────────► one more job refers to it
                     └─ no ─► doomed for an hour, upload ─► adopt ─┘ (or another upload was first: its name)
    acquired for an hour ──► is the job known by then? ── no ──► released: whoever put it got no further
    release ──► last job gone? ──► unreferenced since now
    keep ──► released by a sweep when its time has come, or by `release_kept` when room is short; unless held before
    sweep ──► unreferenced for longer than the grace ──► doomed now ──► deleted from the bucket ──► forgotten

An object's name is used for one upload only. So a sweep that is about to delete a name can never hit bytes that
somebody has put meanwhile: those have another name. And whatever a process that dies leaves behind is in `doomed`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from broker_pipeline import redis_keys
from broker_pipeline.state.redis_client import RedisClient, ScriptRunner

UPLOAD_S = 3600.0
"""How long an upload may take; what was not adopted by then is deleted."""
_NUM_SWEPT = 128
_MAX_KEPT = 100_000

# Every script has KEYS: unreferenced, doomed, kept, acquired; ARGV: template of the media key, template of its jobs'
# key ('@' for the sha256). Further arguments start at 3.
_PRELUDE = """
local UNREFERENCED, DOOMED, KEPT, ACQUIRED = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local UPLOAD_S = @UPLOAD_S@
local function named(template, sha) return (string.gsub(template, '@', sha)) end
local function media_key(sha) return named(ARGV[1], sha) end
local function jobs_key(sha) return named(ARGV[2], sha) end
local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
local function refer(sha, job)
  redis.call('SADD', jobs_key(sha), job)
  redis.call('ZADD', ACQUIRED, now() + UPLOAD_S, job .. ' ' .. sha)
  redis.call('ZREM', UNREFERENCED, sha)
end
local function release(sha, job)
  redis.call('ZREM', KEPT, job .. ' ' .. sha)
  redis.call('ZREM', ACQUIRED, job .. ' ' .. sha)
  if redis.call('SREM', jobs_key(sha), job) == 1 and redis.call('SCARD', jobs_key(sha)) == 0
     and redis.call('EXISTS', media_key(sha)) == 1 then
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
""".replace("@UPLOAD_S@", str(UPLOAD_S))

# ARGV: sha256, job. Returns the object's name, or false.
_CLAIM = (
    _PRELUDE
    + """
local name = redis.call('GET', media_key(ARGV[3]))
if name then refer(ARGV[3], ARGV[4]) end
return name
"""
)

# ARGV: name, seconds.
_DOOM = (
    _PRELUDE
    + """
redis.call('ZADD', DOOMED, now() + tonumber(ARGV[4]), ARGV[3])
return 1
"""
)

# ARGV: sha256, job, name, the name that it replaces (or ''). Returns the name to use; '' when the upload came too late.
_ADOPT = (
    _PRELUDE
    + """
local sha, job, name, replaced = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local current = redis.call('GET', media_key(sha))
if current and current ~= replaced and current ~= name then
  refer(sha, job)
  return current
end
if current ~= name then
  if redis.call('ZREM', DOOMED, name) == 0 then return '' end
  redis.call('SET', media_key(sha), name)
end
refer(sha, job)
return name
"""
)

# ARGV: job, sha256...
_RELEASE = (
    _PRELUDE
    + """
for i = 4, #ARGV do release(ARGV[i], ARGV[3]) end
return 1
"""
)

# ARGV: job, seconds, most references that are kept, sha256... Over that number the oldest go.
_KEEP = (
    _PRELUDE
    + """
local job, until_s, most = ARGV[3], now() + tonumber(ARGV[4]), tonumber(ARGV[5])
for i = 6, #ARGV do redis.call('ZADD', KEPT, until_s, job .. ' ' .. ARGV[i]) end
local excess = redis.call('ZCARD', KEPT) - most
if excess > 0 then release_kept(redis.call('ZRANGE', KEPT, 0, math.min(excess, 1000) - 1)) end
return 1
"""
)

# ARGV: job, sha256...
_HOLD = (
    _PRELUDE
    + """
for i = 4, #ARGV do redis.call('ZREM', KEPT, ARGV[3] .. ' ' .. ARGV[i]) end
return 1
"""
)

# ARGV: most to release, seconds from now ('-': those whose time has come, else those that would stay for longer).
# Returns how many.
_RELEASE_KEPT = (
    _PRELUDE
    + """
if ARGV[4] == '-' then
  return release_kept(redis.call('ZRANGEBYSCORE', KEPT, '-inf', now(), 'LIMIT', 0, ARGV[3]))
end
return release_kept(redis.call('ZRANGEBYSCORE', KEPT, now() + tonumber(ARGV[4]), '+inf', 'LIMIT', 0, ARGV[3]))
"""
)

# ARGV: template of a job's key, most to look at. A retried job's reference is held by `job.number`. Returns how many.
_RELEASE_UNKNOWN = (
    _PRELUDE
    + """
local due = redis.call('ZRANGEBYSCORE', ACQUIRED, '-inf', now(), 'LIMIT', 0, ARGV[4])
for _, member in ipairs(due) do
  local holder, sha = string.match(member, '^(%S+) (%S+)$')
  redis.call('ZREM', ACQUIRED, member)
  if redis.call('EXISTS', named(ARGV[3], string.match(holder, '^[^.]+'))) == 0 then release(sha, holder) end
end
return #due
"""
)

# ARGV: grace in seconds, most to take. Returns names to delete.
_TAKE = (
    _PRELUDE
    + """
local time, most = now(), tonumber(ARGV[4])
for _, sha in ipairs(redis.call('ZRANGEBYSCORE', UNREFERENCED, '-inf', time - tonumber(ARGV[3]), 'LIMIT', 0, most)) do
  redis.call('ZREM', UNREFERENCED, sha)
  local name = redis.call('GET', media_key(sha))
  if name and redis.call('SCARD', jobs_key(sha)) == 0 then
    redis.call('DEL', media_key(sha))
    redis.call('ZADD', DOOMED, time, name)
  end
end
return redis.call('ZRANGEBYSCORE', DOOMED, '-inf', time, 'LIMIT', 0, most)
"""
)

# ARGV: names that were deleted.
_FORGET = (
    _PRELUDE
    + """
for i = 3, #ARGV do redis.call('ZREM', DOOMED, ARGV[i]) end
return 1
"""
)


@dataclass(slots=True)
class MediaReferences:
    """The references of one namespace. Every method is one script, safe to repeat, and raises `StateError`."""

    redis: RedisClient
    namespace: str
    _run: ScriptRunner = field(init=False)

    def __post_init__(self) -> None:
        self._run = ScriptRunner(self.redis)

    async def acquire(self, sha256: str, job_id: str) -> str | None:
        """Let the job refer to bytes that are known; return their object's name, or None when they are not."""
        name: bytes | None = await self._call(_CLAIM, sha256, job_id)
        return name.decode() if name else None

    async def doom(self, name: str, after_s: float) -> None:
        """Have the object deleted by a sweep `after_s` seconds from now, unless it is adopted before."""
        await self._call(_DOOM, name, after_s)

    async def adopt(self, sha256: str, job_id: str, name: str, *, replaces: str | None) -> str | None:
        """Let the job refer to the uploaded object; return the name to use.

        That is another upload's name if that one was first. None: the upload took so long that a sweep may have
        deleted it.
        """
        adopted: bytes = await self._call(_ADOPT, sha256, job_id, name, replaces or "")
        return adopted.decode() or None

    async def release(self, sha256s: tuple[str, ...], job_id: str) -> None:
        """Let the job refer to these bytes no more."""
        if sha256s:
            await self._call(_RELEASE, job_id, *sha256s)

    async def keep(self, sha256s: tuple[str, ...], job_id: str, for_s: float) -> None:
        """Let the job's references to these bytes, those that it has and those to come, end `for_s` from now.

        Of more than 100,000 such references the oldest end at once.
        """
        if sha256s:
            await self._call(_KEEP, job_id, for_s, _MAX_KEPT, *sha256s)

    async def hold(self, sha256s: tuple[str, ...], job_id: str) -> None:
        """Let the job's references to these bytes stay until they are released."""
        if sha256s:
            await self._call(_HOLD, job_id, *sha256s)

    async def release_due(self) -> None:
        """End the kept references whose time has come."""
        while await self._call(_RELEASE_KEPT, _NUM_SWEPT, "-") == _NUM_SWEPT:
            pass

    async def release_unknown(self) -> None:
        """End references that are an hour old and whose job was never recorded: its submission did not get so far.

        An acquisition may reach Redis after its sender has given up waiting, so that nobody else could release it.
        """
        job_key = redis_keys.job(self.namespace, "@")
        while await self._call(_RELEASE_UNKNOWN, job_key, _NUM_SWEPT) == _NUM_SWEPT:
            pass

    async def release_oldest(self) -> int:
        """End some of the references that are kept for longer than an upload takes, the oldest; return how many."""
        return int(await self._call(_RELEASE_KEPT, _NUM_SWEPT, UPLOAD_S + 1))

    async def take_deletable(self, grace_s: float) -> list[str]:
        """Give up bytes that no job has needed for `grace_s`; return names of objects to delete, some at a time."""
        names: list[bytes] = await self._call(_TAKE, grace_s, _NUM_SWEPT)
        return [name.decode() for name in names]

    async def forget(self, names: list[str]) -> None:
        """Take note that these objects are deleted."""
        await self._call(_FORGET, *names)

    async def _call(self, script: str, *args: str | float) -> Any:
        keys = [
            redis_keys.media_unreferenced(self.namespace),
            redis_keys.media_doomed(self.namespace),
            redis_keys.media_kept(self.namespace),
            redis_keys.media_claimed(self.namespace),
        ]
        templates = [redis_keys.media(self.namespace, "@"), redis_keys.media_jobs(self.namespace, "@")]
        return await self._run(script, keys, [*templates, *args], action="the media store's references")
