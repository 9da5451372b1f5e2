-- Lists files or batches of a tenant after one of them. args: kind (files, batches), tenant, limit, is_descending;
-- after, and the `purpose` of files, where they are given.
-- Returns up to `limit` + 1 ids, the one more as a sign that there are some; false when `after` is not there.
local list, found = key(args.kind, args.tenant), {}
local rank = 0
if args.after then
  rank = redis.call(args.is_descending and 'ZREVRANK' or 'ZRANK', list, args.after)
  if not rank then return false end
  rank = rank + 1
end
local read = args.is_descending and 'ZREVRANGE' or 'ZRANGE'
while true do
  local ids = redis.call(read, list, rank, rank + args.limit)
  for _, id in ipairs(ids) do
    if not args.purpose or redis.call('HGET', key('file', id), 'purpose') == args.purpose then
      found[#found + 1] = id
      if #found > args.limit then return found end
    end
  end
  if #ids <= args.limit then return found end
  rank = rank + args.limit + 1
end
