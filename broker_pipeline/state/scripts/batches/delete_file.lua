-- Deletes a file of a tenant. args: file_id, tenant. Returns 1; 0 while a batch reads it; -1 when there is none.
local tenant, num_readers = unpack(redis.call('HMGET', key('file', args.file_id), 'tenant', 'num_readers'))
if tenant ~= args.tenant then return -1 end
if tonumber(num_readers or '0') > 0 then return 0 end
forget_file(args.file_id)
return 1
