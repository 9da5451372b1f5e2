-- Records a new batch, or finds the one that was asked for before in the same way.
-- args: batch_id, tenant, input_file_id, fields; repeat_key, repeat_s, and finds_ended: whether a batch that
-- ended without success is found too. Returns {batch id, 1 when it is this one}, or {'', 0} without its input file.
local other = text(args.repeat_key)
local status = other and redis.call('HGET', key('batch', other), 'status')
if status and other ~= args.batch_id and (args.finds_ended or status == 'completed' or not FINAL[status]) then
  return {other, 0}
end
local batch, file = key('batch', args.batch_id), key('file', args.input_file_id)
if status and other == args.batch_id then return {other, 1} end
if redis.call('HGET', file, 'tenant') ~= args.tenant then return {'', 0} end
redis.call('SET', args.repeat_key, args.batch_id, 'EX', args.repeat_s)
redis.call('ZADD', key('batches', args.tenant), now(), args.batch_id)
redis.call('HINCRBY', file, 'num_readers', 1)
redis.call('HSET', batch, 'status', 'validating', 'tenant', args.tenant, unpack(args.fields))
wait(args.batch_id)
return {args.batch_id, 1}
