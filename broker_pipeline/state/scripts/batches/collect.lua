-- Notes requests of a batch as done, together with the parts that were written of them.
-- args: batch_id, instance, requests (numbers from 0), output, errors (parts), counts: fields of the batch that grow.
-- Returns 1, or 0 when nothing was done: another has the batch, or it has ended.
local batch = key('batch', args.batch_id)
local status, output, errors = unpack(redis.call('HMGET', batch, 'status', 'output_file', 'error_file'))
if not holds() or not status or FINAL[status] then return 0 end
for _, request in ipairs(args.requests) do
  if redis.call('GETBIT', key('done', args.batch_id), request) == 1 then return 0 end
end
if not adopt(output, args.output) or not adopt(errors, args.errors) then return 0 end
for field, by in pairs(args.counts) do redis.call('HINCRBY', batch, field, by) end
for _, request in ipairs(args.requests) do redis.call('SETBIT', key('done', args.batch_id), request, 1) end
return 1
