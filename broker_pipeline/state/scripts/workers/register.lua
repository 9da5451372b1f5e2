-- Writes a worker's record for another time to live.
-- KEYS: workers, pipelines. args: keys (worker), worker, instance, pipeline, record, ttl_ms.
-- Returns {1} or, when another live instance has the name, {0, its record, ms until that record ends}.
local WORKERS, PIPELINES = unpack(KEYS)
local record = key('worker', args.worker)
local held, of = live_record(record)
if held and of.instance ~= args.instance then return {0, held, redis.call('PTTL', record)} end
redis.call('SET', record, args.record, 'PX', args.ttl_ms)
redis.call('SADD', WORKERS, args.worker)
redis.call('SADD', PIPELINES, args.pipeline)
return {1}
