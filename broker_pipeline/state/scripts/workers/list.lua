-- Lists what stands where records of live workers and conductors should; names without anything leave the set.
-- KEYS: workers, pipelines. args: keys (worker, conductor), max_names, max_of_host, max_bytes.
-- Returns rows of kind, name, record ('' for something else than a string), its size. Any host of workers may put any
-- names there, and records as large as it likes: of one, so many are read, and of all names so many at a time.
local WORKERS = KEYS[1]
local rows, num_of_host = {}, {}
local names = redis.call('SRANDMEMBER', WORKERS, args.max_names)
table.sort(names)  -- else it would be others of a host each time
for _, name in ipairs(names) do
  local is_there = false
  local host = string.match(name, '^(.-)_') or ''
  for kind in pairs(args.keys) do
    local at = key(kind, name)
    if #name <= 64 and redis.call('EXISTS', at) == 1 then
      is_there = true
      num_of_host[host] = (num_of_host[host] or 0) + 1
      if num_of_host[host] <= args.max_of_host then
        local size = redis.pcall('STRLEN', at)
        if type(size) ~= 'number' then size = 0 end
        rows[#rows + 1] = {kind, name, size > 0 and size <= args.max_bytes and text(at) or '', size}
      end
    end
  end
  if not is_there then redis.call('SREM', WORKERS, name) end
end
return rows
