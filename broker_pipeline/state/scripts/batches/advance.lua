-- Moves a batch on. args: batch_id, instance, from (a status), status. Returns 1, or 0 when it is elsewhere by now.
local batch = key('batch', args.batch_id)
if not holds() or redis.call('HGET', batch, 'status') ~= args.from then return 0 end
move(batch, args.status)
return 1
