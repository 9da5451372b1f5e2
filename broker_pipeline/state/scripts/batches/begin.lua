-- Lets a batch run whose input was found right. args: batch_id, instance, offsets, fields. Returns 1, or 0: not now.
local batch, offsets = key('batch', args.batch_id), key('offsets', args.batch_id)
if not holds() or redis.call('HGET', batch, 'status') ~= 'validating' then return 0 end
redis.call('DEL', offsets)
for first = 1, #args.offsets, 1000 do  -- unpack has a limit
  redis.call('RPUSH', offsets, unpack(args.offsets, first, math.min(first + 999, #args.offsets)))
end
redis.call('HSET', batch, unpack(args.fields))
move(batch, 'in_progress')
return 1
