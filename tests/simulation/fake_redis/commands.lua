-- What a Redis holds, and the commands that the project's scripts and clients use: in Lua, since scripts, which are Lua,
-- call them by the thousand. `data.py` has the Python side; `test_redis.py` holds it against a real one.
-- A store: values by key (a string, or a table: list, or members of a set, hash or sorted set), their kinds, their ends.
-- Arguments are strings; what is not there comes back as false.
local wall_s = ...  -- the time of day when a simulation begins
local commands = {}

local function del(store, key)
  local was_there = store.values[key] ~= nil
  store.values[key], store.kinds[key], store.ends[key] = nil, nil, nil
  return was_there and 1 or 0
end

local function find(store, key, kind)
  local ends = store.ends[key]
  if ends and ends <= store.now then del(store, key) end
  local held = store.values[key]
  if held == nil and kind then
    held = {}
    store.values[key], store.kinds[key] = held, kind
  end
  return held
end

local function drop_if_empty(store, key)
  if next(store.values[key] or {false}) == nil then del(store, key) end
end

local function each(store, key, call, ...)
  local held = find(store, key) or {}
  local num = 0
  for _, field in ipairs({...}) do num = num + call(held, field) end
  drop_if_empty(store, key)
  return num
end

local function size(held)
  local num = 0
  for _ in pairs(held or {}) do num = num + 1 end
  return num
end

local function slice(items, start, stop)
  start, stop = tonumber(start), tonumber(stop)
  if start < 0 then start = start + #items end
  if stop < 0 then stop = stop + #items end
  local found = {}
  for index = start + 1, math.min(stop + 1, #items) do found[#found + 1] = items[index] end
  return found
end

local function by_score(store, key)
  local held, members = find(store, key) or {}, {}
  for member in pairs(held) do members[#members + 1] = member end
  table.sort(members, function(a, b)
    if held[a] ~= held[b] then return held[a] < held[b] end
    return a < b
  end)
  return members, held
end

-- --- keys and strings ---

function commands.TIME(store)
  local micros = math.floor(store.now * 1000000 + 0.5)
  return {string.format('%d', wall_s + math.floor(micros / 1000000)), string.format('%d', micros % 1000000)}
end

function commands.PING() return 'PONG' end

function commands.EXISTS(store, key) return find(store, key) ~= nil and 1 or 0 end

function commands.DEL(store, ...)
  local num = 0
  for _, key in ipairs({...}) do num = num + del(store, key) end
  return num
end

function commands.TYPE(store, key)
  find(store, key)
  return {ok = store.kinds[key] or 'none'}
end

function commands.RENAME(store, key, name)
  del(store, name)
  for _, table in ipairs({store.values, store.kinds, store.ends}) do table[name], table[key] = table[key], nil end
  return 'OK'
end

function commands.GET(store, key) return find(store, key) or false end

function commands.STRLEN(store, key) return #(find(store, key) or '') end

function commands.SET(store, key, value, unit, number)
  store.values[key], store.kinds[key], store.ends[key] = value, 'string', nil
  if unit then store.ends[key] = store.now + tonumber(number) / (unit == 'PX' and 1000 or 1) end
  return 'OK'
end

function commands.PEXPIRE(store, key, millis)
  if find(store, key) == nil then return 0 end
  store.ends[key] = store.now + tonumber(millis) / 1000
  return 1
end

function commands.EXPIRE(store, key, seconds) return commands.PEXPIRE(store, key, tonumber(seconds) * 1000) end

function commands.PERSIST(store, key)
  local had_end = store.ends[key] ~= nil
  store.ends[key] = nil
  return had_end and 1 or 0
end

function commands.PTTL(store, key)
  if find(store, key) == nil then return -2 end
  local ends = store.ends[key]
  return ends and math.floor((ends - store.now) * 1000 + 0.5) or -1
end

-- --- hashes ---

function commands.HSET(store, key, ...)
  local held, pairs, num = find(store, key, 'hash'), {...}, 0
  for index = 1, #pairs, 2 do
    if held[pairs[index]] == nil then num = num + 1 end
    held[pairs[index]] = pairs[index + 1]
  end
  return num
end

function commands.HSETNX(store, key, field, value)
  local held = find(store, key, 'hash')
  if held[field] ~= nil then return 0 end
  held[field] = value
  return 1
end

function commands.HGET(store, key, field) return (find(store, key) or {})[field] or false end

function commands.HMGET(store, key, ...)
  local held, found = find(store, key) or {}, {...}
  for index, field in ipairs(found) do found[index] = held[field] or false end
  return found
end

function commands.HGETALL(store, key)
  local found = {}
  for field, value in pairs(find(store, key) or {}) do
    found[#found + 1], found[#found + 2] = field, value
  end
  return found
end

function commands.HVALS(store, key)
  local found = {}
  for _, value in pairs(find(store, key) or {}) do found[#found + 1] = value end
  return found
end

local function take_out(held, field)
  local was_there = held[field] ~= nil
  held[field] = nil
  return was_there and 1 or 0
end

function commands.HDEL(store, key, ...) return each(store, key, take_out, ...) end

function commands.HINCRBY(store, key, field, by)
  local held = find(store, key, 'hash')
  local value = tonumber(held[field] or 0) + tonumber(by)
  held[field] = string.format('%d', value)
  return value
end

-- --- lists, sets and sorted sets ---

function commands.RPUSH(store, key, ...)
  local held = find(store, key, 'list')
  for _, item in ipairs({...}) do held[#held + 1] = item end
  return #held
end

function commands.LLEN(store, key) return #(find(store, key) or {}) end

function commands.LRANGE(store, key, start, stop) return slice(find(store, key) or {}, start, stop) end

function commands.SADD(store, key, ...)
  local held, num = find(store, key, 'set'), 0
  for _, member in ipairs({...}) do
    if held[member] == nil then num = num + 1 end
    held[member] = true
  end
  return num
end

commands.SREM, commands.ZREM = commands.HDEL, commands.HDEL

function commands.SCARD(store, key) return size(find(store, key)) end

commands.ZCARD = commands.SCARD

function commands.SRANDMEMBER(store, key, count)
  local members = {}
  for member in pairs(find(store, key) or {}) do members[#members + 1] = member end
  table.sort(members)
  return slice(members, 0, tonumber(count) - 1)
end

function commands.ZADD(store, key, ...)
  local held, pairs, num = find(store, key, 'zset'), {...}, 0
  for index = 1, #pairs, 2 do
    if held[pairs[index + 1]] == nil then num = num + 1 end
    held[pairs[index + 1]] = tonumber(pairs[index])
  end
  return num
end

function commands.ZRANGE(store, key, start, stop) return slice(by_score(store, key), start, stop) end

function commands.ZRANGEBYSCORE(store, key, low, high, limit, first, num)
  local members, held = by_score(store, key)
  local found = {}
  low, high = low == '-inf' and -math.huge or tonumber(low), high == '+inf' and math.huge or tonumber(high)
  for _, member in ipairs(members) do
    if low <= held[member] and held[member] <= high then found[#found + 1] = member end
  end
  return limit and slice(found, first, first + num - 1) or found
end

return commands
