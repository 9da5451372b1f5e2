-- Cancels, pauses or resumes a tenant's batch. args: batch_id, tenant, action.
-- Returns 1; 0 when its status does not allow it; -1 when there is none.
local batch = key('batch', args.batch_id)
local status, tenant = unpack(redis.call('HMGET', batch, 'status', 'tenant'))
if tenant ~= args.tenant then return -1 end
if args.action == 'cancel' and (status == 'cancelling' or status == 'cancelled') then return 1 end
if FINAL[status] or status == 'cancelling' then return 0 end
redis.call('HSET', batch, 'paused', args.action == 'pause' and 1 or 0)
if args.action == 'cancel' then move(batch, 'cancelling') end
if args.action == 'pause' then
  redis.call('ZREM', key('waiting', tenant), args.batch_id)
elseif not redis.call('ZSCORE', CARRIED, args.batch_id) then
  wait(args.batch_id)
end
return 1
