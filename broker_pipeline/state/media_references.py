"""Which jobs need which stored bytes, in Redis.

    put ──► acquire: known? ── yes ──────────────────────────────► one more job refers to it
                     └─ no ─► doomed for an hour, upload ─► adopt ─┘ (or another upload was first: its name)
    acquired for an hour ──► is the job known by then? ── no ──► released: whoever put it got no further
    release ──► last job gone? ──► unreferenced since now
    keep ──► released by a sweep when its time has come, or by `release_kept` when room is short; unless held before
    sweep ──► unreferenced for longer than the grace ──► doomed now ──► deleted from JetStream ──► forgotten

An object's name is used for one upload only. So a sweep that is about to delete a name can never hit bytes that
somebody has put meanwhile: those have another name. And whatever a process that dies leaves behind is in `doomed`.
"""

from __future__ import annotations

from typing import Any

from broker_pipeline import redis_keys
from broker_pipeline.state.redis_client import RedisClient, state_errors
from broker_pipeline.state.script_runner import ScriptRunner

UPLOAD_S = 3600.0
"""How long an upload may take; what was not adopted by then is deleted."""
_NUM_SWEPT = 128
_CLAIM_S = 60.0
_MAX_KEPT = 100_000
_ACTION = "the media store's references"


class MediaReferences:
    """The references of one namespace. Every method is one command or script, safe to repeat; raises `StateError`."""

    def __init__(self, redis: RedisClient, namespace: str) -> None:
        """Share the references with everybody who uses this Redis and namespace."""
        self._redis = redis
        self._doomed = redis_keys.media_doomed(namespace)
        keys = [
            redis_keys.media_unreferenced(namespace),
            self._doomed,
            redis_keys.media_kept(namespace),
            redis_keys.media_acquired(namespace),
        ]
        templates = {
            "media": redis_keys.media(namespace, "@"),
            "media_jobs": redis_keys.media_jobs(namespace, "@"),
            "job": redis_keys.job(namespace, "@"),
        }
        shared = {"keys": templates, "upload_s": UPLOAD_S}
        self._scripts = ScriptRunner(redis, "media", keys, shared, dict.fromkeys(keys, "zset"))

    async def acquire(self, sha256: str, job_id: str, *, upload: tuple[str, float] | None = None) -> str | None:
        """Let the job refer to bytes that are known; return their object's name, or None when they are not.

        Bytes that are not known are about to be uploaded under a name and within some seconds, where `upload` says so.
        """
        own = {} if upload is None else {"upload": upload[0], "after_s": upload[1]}
        name: bytes | None = await self._run("acquire", sha256=sha256, job_id=job_id, **own)
        return name.decode() if name else None

    async def doom(self, name: str, after_s: float) -> None:
        """Have the object deleted by a sweep `after_s` seconds from now, unless it is adopted before."""
        await self._run("doom", name=name, after_s=after_s)

    async def adopt(self, sha256: str, job_id: str, name: str, *, replaces: str | None) -> str | None:
        """Let the job refer to the uploaded object; return the name to use.

        That is another upload's name if that one was first. None: the upload took so long that a sweep may have
        deleted it.
        """
        replaced = {} if replaces is None else {"replaces": replaces}
        adopted: bytes = await self._run("adopt", sha256=sha256, job_id=job_id, name=name, **replaced)
        return adopted.decode() or None

    async def release(self, sha256s: tuple[str, ...], job_id: str) -> None:
        """Let the job refer to these bytes no more."""
        if sha256s:
            await self._run("release", job_id=job_id, sha256s=sha256s)

    async def keep(self, sha256s: tuple[str, ...], job_id: str, for_s: float) -> None:
        """Let the job's references to these bytes, those that it has and those to come, end `for_s` from now.

        Of more than 100,000 such references the oldest end at once.
        """
        if sha256s:
            await self._run("keep", job_id=job_id, sha256s=sha256s, for_s=for_s, limit=_MAX_KEPT)

    async def hold(self, sha256s: tuple[str, ...], job_id: str) -> None:
        """Let the job's references to these bytes stay until they are released."""
        if sha256s:
            await self._run("hold", job_id=job_id, sha256s=sha256s)

    async def release_due(self) -> None:
        """End the kept references whose time has come."""
        while await self._run("release_kept", limit=_NUM_SWEPT) == _NUM_SWEPT:
            pass

    async def release_unknown(self) -> None:
        """End references that are an hour old and whose job was never recorded: its submission did not get so far.

        An acquisition may reach Redis after its sender has given up waiting, so that nobody else could release it.
        """
        while await self._run("release_unknown", limit=_NUM_SWEPT) == _NUM_SWEPT:
            pass

    async def release_oldest(self) -> int:
        """End some of the references that are kept for longer than an upload takes, the oldest; return how many."""
        return int(await self._run("release_kept", limit=_NUM_SWEPT, left_s=UPLOAD_S + 1))

    async def take_deletable(self, grace_s: float) -> list[str]:
        """Give up bytes that no job has needed for `grace_s`; return names of objects to delete, some at a time.

        For a minute they are the caller's to delete and `forget`; then they are given to the next one.
        """
        args = {"grace_s": grace_s, "limit": _NUM_SWEPT, "claim_s": _CLAIM_S}
        names: list[bytes] = await self._run("take_deletable", **args)
        return [name.decode() for name in names]

    async def forget(self, names: list[str]) -> None:
        """Take note that these objects are deleted."""
        with state_errors(_ACTION):
            await self._redis.zrem(self._doomed, *names)

    async def _run(self, script: str, **args: Any) -> Any:
        return await self._scripts(script, args, _ACTION)
