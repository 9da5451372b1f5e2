-- Ends a batch: its output becomes files. args: batch_id, instance, from (a status), status, keep_s: how long it is
-- known from then on; tells: whether somebody is to be told; errors where there are some.
-- Returns 1, or 0 when it is elsewhere by now.
local batch = key('batch', args.batch_id)
local status, tenant, input, output, errors, output_bytes, error_bytes, lives_s = unpack(redis.call('HMGET', batch,
  'status', 'tenant', 'input_file_id', 'output_file', 'error_file', 'output_bytes', 'error_bytes', 'output_lives_s'))
if not holds() or status ~= args.from then return 0 end
for kind, file in pairs({output = {output, output_bytes}, error = {errors, error_bytes}}) do
  if redis.call('EXISTS', key('parts', file[1])) == 1 then
    local name = args.batch_id .. '_' .. kind .. '.jsonl'
    record_file(file[1], tenant, tonumber(lives_s), {'purpose', 'batch_output', 'filename', name, 'bytes', file[2]})
    redis.call('HSET', batch, kind .. '_file_id', file[1])
  end
end
if args.errors then redis.call('HSET', batch, 'errors', args.errors) end
if redis.call('EXISTS', key('file', input)) == 1 then redis.call('HINCRBY', key('file', input), 'num_readers', -1) end
redis.call('ZREM', CARRIED, args.batch_id)
redis.call('ZREM', key('waiting', tenant), args.batch_id)
redis.call('ZADD', EXPIRY, now() + args.keep_s, args.batch_id)
if args.tells then redis.call('ZADD', UNTOLD, now(), args.batch_id) end
redis.call('DEL', key('done', args.batch_id), key('offsets', args.batch_id))
move(batch, args.status)
return 1
