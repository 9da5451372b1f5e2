-- Deletes a worker's record, unless another instance has the name.
-- KEYS: workers, pipelines. args: keys (worker), worker, instance. Returns 1 when it was there.
local WORKERS = KEYS[1]
local record = key('worker', args.worker)
local held, of = live_record(record)
if held and of.instance ~= args.instance then return 0 end
redis.call('SREM', WORKERS, args.worker)
return redis.call('DEL', record)
