"""Every Redis key in one place.

{ns}:job:{id}               hash    spec, status, times, attempt, result, error, cancel flag (see `state.job_store`)
{ns}:job:{id}:tokens        list    one JSON `TokenEntry` per committed token; the index is the token's number
{ns}:jobs                   zset    job ids by time of creation
{ns}:jobs:{status}          zset    job ids with this status, by time of creation
{ns}:expiry                 zset    ids of finished jobs by the time at which they are forgotten
{ns}:unpublished            zset    `job retries` of jobs that may not be in the queue yet, by the time of that
{ns}:counts                 hash    jobs that have ended since the start, by status
{ns}:idempotency:{key}      string  job id of an earlier submission with this key
{ns}:keys                   hash    by the hash of each key to the gateway, JSON `GatewayKey`
{ns}:limits:{key}           hash    what the key with this hash has left of its limits, with a time to live
{ns}:limits:{key}:parallel  zset    its requests under way, by the time until which they count
{ns}:tenant:{t}:jobs        zset    ids of one tenant's jobs by time of creation
{ns}:tenant:{t}:jobs:{status}  zset  those with this status
{ns}:tenant:{t}:idempotency:{key}  string  job id of a submission of this tenant
{ns}:media:{sha256}         string  object name of the stored bytes
{ns}:media:{sha256}:jobs    set     jobs that need them
{ns}:media:unreferenced     zset    sha256 by the time from which no job needed it
{ns}:media:kept             zset    references that end by themselves (those of failed jobs), by the time of that
{ns}:media:acquired          zset    new references, by the time from which their job has to be known
{ns}:media:doomed           zset    object names by the time from which they may be deleted
{ns}:thumbnail:{sha256}     string  small JPEG of a picture that somebody looked at, with a time to live
{ns}:thumbnails             zset    sha256 of those by the time of their making
{ns}:files:{tenant}         zset    ids of a tenant's files, by time of creation
{ns}:files-expiry           zset    ids of files by the time at which they are deleted
{ns}:files-doomed           zset    names of parts of files by the time from which they may be deleted
{ns}:file:{id}              hash    a file's name, size, purpose, times (see `gateway.batches.file_store`)
{ns}:file:{id}:parts        list    where its bytes are: `name bytes chunk-bytes`
{ns}:batches:{tenant}       zset    ids of a tenant's batches, by time of creation
{ns}:batches-waiting:{tenant} zset  ids of a tenant's batches that nobody carries on, by priority and time of creation
{ns}:batches-turns          zset    tenants with batches that have not ended, by when one was last carried on
{ns}:batches-carried        zset    ids of batches that were carried on when somebody looked last
{ns}:batches-active         zset    ids of batches that an earlier build made and nobody has looked at since
{ns}:batches-expiry         zset    ids of batches that have ended by the time at which they are forgotten
{ns}:batches-untold         zset    ids of batches whose end the webhook was not told of, by the time of the next try
{ns}:batch:{id}             hash    what was asked for, status, times, counts (see `gateway.batches.batch_store`)
{ns}:batch:{id}:done        string  a bit for each of its requests
{ns}:batch:{id}:offsets     list    where in the input file every 1,000th request begins
{ns}:batch-key:{key}        string  id of an earlier batch that was asked for in the same way
{ns}:probe                  string  written to find out whether Redis takes writes
{ns}:pipelines              set     names of pipelines that have, or had, workers
{ns}:{pl}:workers           set     names of workers that have, or had, a record
{ns}:{pl}:worker:{name}     string  JSON `WorkerRecord` of a stage or vision worker, with a time to live
{ns}:{pl}:conductor:{name}  string  that of a conductor, which workers may not write
{ns}:{pl}:lease             string  instance of the conductor that has the share, with a time to live
{ns}:{pl}:lease:{share}     string  the same for a share that has a name
{ns}:{pl}:epoch             string  counter; every tenure of any share takes the next one
{ns}:{pl}:status            string  JSON of what the conductor of the share shows, with a time to live
{ns}:{pl}:status:{share}    string  the same for a share that has a name
{ns}:{pl}:rates             list    JSON `RateSample` every ten seconds, the newest last, for an hour

What stands in a key of all rows and is of another type is moved to KEY:garbled (see `state.script_runner`).
"""

from __future__ import annotations


def job(namespace: str, job_id: str) -> str:
    """Return the key of one job's hash."""
    return f"{namespace}:job:{job_id}"


def job_tokens(namespace: str, job_id: str) -> str:
    """Return the key of the list of a job's committed tokens."""
    return f"{namespace}:job:{job_id}:tokens"


def jobs(namespace: str) -> str:
    """Return the key of the sorted set of job ids by time of creation."""
    return f"{namespace}:jobs"


def jobs_with_status(namespace: str, status: str) -> str:
    """Return the key of the sorted set of ids of jobs with one status, by time of creation."""
    return f"{namespace}:jobs:{status}"


def expiry(namespace: str) -> str:
    """Return the key of the sorted set of ids of finished jobs, by the time at which they are forgotten."""
    return f"{namespace}:expiry"


def unpublished(namespace: str) -> str:
    """Return the key of the sorted set of jobs that may not be in the queue yet, by the time of their recording."""
    return f"{namespace}:unpublished"


def counts(namespace: str) -> str:
    """Return the key of the hash of the number of jobs that have ended, by status."""
    return f"{namespace}:counts"


def idempotency(namespace: str, key: str, tenant: str = "") -> str:
    """Return the key of the job id of a tenant's earlier submission with the same idempotency key."""
    return f"{namespace}:tenant:{tenant}:idempotency:{key}" if tenant else f"{namespace}:idempotency:{key}"


def gateway_keys(namespace: str) -> str:
    """Return the key of the hash of keys to the gateway."""
    return f"{namespace}:keys"


def limits(namespace: str, key_hash: str) -> str:
    """Return the key of the hash of what a key to the gateway has left."""
    return f"{namespace}:limits:{key_hash}"


def limits_parallel(namespace: str, key_hash: str) -> str:
    """Return the key of the sorted set of requests under way of a key to the gateway."""
    return f"{namespace}:limits:{key_hash}:parallel"


def tenant_jobs(namespace: str, tenant: str, status: str = "") -> str:
    """Return the key of the sorted set of ids of a tenant's jobs (with one status), by time of creation."""
    return _of_share(f"{namespace}:tenant:{tenant}:jobs", status)


def tenant(namespace: str, name: str) -> str:
    """Return what keys of a tenant begin with."""
    return f"{namespace}:tenant:{name}"


def media(namespace: str, sha256: str) -> str:
    """Return the key of the object name of stored bytes."""
    return f"{namespace}:media:{sha256}"


def media_jobs(namespace: str, sha256: str) -> str:
    """Return the key of the set of jobs that need stored bytes."""
    return f"{namespace}:media:{sha256}:jobs"


def media_unreferenced(namespace: str) -> str:
    """Return the key of the sorted set of media that no job needs, by the time from which that is so."""
    return f"{namespace}:media:unreferenced"


def media_kept(namespace: str) -> str:
    """Return the key of the sorted set of references that end by themselves, by the time at which they do."""
    return f"{namespace}:media:kept"


def media_acquired(namespace: str) -> str:
    """Return the key of the sorted set of new references, by the time from which their job has to be known."""
    return f"{namespace}:media:acquired"


def media_doomed(namespace: str) -> str:
    """Return the key of the sorted set of object names by the time from which they may be deleted."""
    return f"{namespace}:media:doomed"


def thumbnail(namespace: str, sha256: str) -> str:
    """Return the key of a picture made small."""
    return f"{namespace}:thumbnail:{sha256}"


def thumbnails(namespace: str) -> str:
    """Return the key of the sorted set of pictures made small, by the time of their making."""
    return f"{namespace}:thumbnails"


def files(namespace: str, tenant: str) -> str:
    """Return the key of the sorted set of ids of a tenant's files, by time of creation."""
    return f"{namespace}:files:{tenant}"


def files_expiry(namespace: str) -> str:
    """Return the key of the sorted set of ids of files by the time at which they are deleted."""
    return f"{namespace}:files-expiry"


def files_doomed(namespace: str) -> str:
    """Return the key of the sorted set of names of parts of files by the time from which they may be deleted."""
    return f"{namespace}:files-doomed"


def file(namespace: str, file_id: str) -> str:
    """Return the key of one file's hash."""
    return f"{namespace}:file:{file_id}"


def file_parts(namespace: str, file_id: str) -> str:
    """Return the key of the list of parts that a file is made of."""
    return f"{namespace}:file:{file_id}:parts"


def batches(namespace: str, tenant: str) -> str:
    """Return the key of the sorted set of ids of a tenant's batches, by time of creation."""
    return f"{namespace}:batches:{tenant}"


def batches_waiting(namespace: str, tenant: str) -> str:
    """Return the key of the sorted set of ids of a tenant's batches that nobody carries on, the most urgent first."""
    return f"{namespace}:batches-waiting:{tenant}"


def batches_turns(namespace: str) -> str:
    """Return the key of the sorted set of tenants with batches that have not ended, by when they had their turn."""
    return f"{namespace}:batches-turns"


def batches_carried(namespace: str) -> str:
    """Return the key of the sorted set of ids of batches that were carried on when somebody looked last."""
    return f"{namespace}:batches-carried"


def batches_active(namespace: str) -> str:
    """Return the key of the sorted set of ids of batches of an earlier build, by priority and time of creation."""
    return f"{namespace}:batches-active"


def batches_expiry(namespace: str) -> str:
    """Return the key of the sorted set of ids of batches that have ended by the time at which they are forgotten."""
    return f"{namespace}:batches-expiry"


def batches_untold(namespace: str) -> str:
    """Return the key of the sorted set of ids of batches whose end the webhook was not told of."""
    return f"{namespace}:batches-untold"


def batch(namespace: str, batch_id: str) -> str:
    """Return the key of one batch's hash."""
    return f"{namespace}:batch:{batch_id}"


def batch_done(namespace: str, batch_id: str) -> str:
    """Return the key of the bits that say which requests of a batch are done."""
    return f"{namespace}:batch:{batch_id}:done"


def batch_offsets(namespace: str, batch_id: str) -> str:
    """Return the key of the list of places in the input file at which every so many requests begin."""
    return f"{namespace}:batch:{batch_id}:offsets"


def batch_key(namespace: str, key: str) -> str:
    """Return the key of the id of an earlier batch that was asked for in the same way."""
    return f"{namespace}:batch-key:{key}"


def probe(namespace: str) -> str:
    """Return the key that is written to find out whether Redis takes writes."""
    return f"{namespace}:probe"


def pipelines(namespace: str) -> str:
    """Return the key of the set of names of pipelines that have, or had, workers."""
    return f"{namespace}:pipelines"


def workers(namespace: str, pipeline: str) -> str:
    """Return the key of the set of names of workers that have, or had, a record."""
    return f"{namespace}:{pipeline}:workers"


def worker(namespace: str, pipeline: str, name: str) -> str:
    """Return the key of the record of a stage or vision worker."""
    return f"{namespace}:{pipeline}:worker:{name}"


def conductor(namespace: str, pipeline: str, name: str) -> str:
    """Return the key of a conductor's record."""
    return f"{namespace}:{pipeline}:conductor:{name}"


def lease(namespace: str, pipeline: str, share: str = "") -> str:
    """Return the key of the instance of the conductor that has a share."""
    return _of_share(f"{namespace}:{pipeline}:lease", share)


def epoch(namespace: str, pipeline: str) -> str:
    """Return the key of the counter of epochs."""
    return f"{namespace}:{pipeline}:epoch"


def status(namespace: str, pipeline: str, share: str = "") -> str:
    """Return the key of what the conductor of a share shows of it."""
    return _of_share(f"{namespace}:{pipeline}:status", share)


def rates(namespace: str, pipeline: str) -> str:
    """Return the key of the list of samples of a pipeline's rates."""
    return f"{namespace}:{pipeline}:rates"


def _of_share(key: str, share: str) -> str:
    return f"{key}:{share}" if share else key
