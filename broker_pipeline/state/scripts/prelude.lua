-- Stands before every script: what they all get and share.
-- KEYS: keys of one name; each folder of scripts has its own, always the same.
-- ARGV[1]: one JSON object, decoded here as `args`. Its field `keys` holds templates of keys by kind, with '@' for the
-- id; each script names the others. What has to keep its bytes comes as text: a number is a double here, and cjson
-- writes an empty list as {}.
local args = cjson.decode(ARGV[1])

local function key(kind, id)
  local before, after = string.match(args.keys[kind], '^([^@]*)@(.*)$')
  return before .. (id or '@') .. after  -- of a row that lacks it: nobody's
end

-- A string; false where there is none, or something else stands there, which SET replaces.
local function text(name)
  local held = redis.pcall('GET', name)
  return type(held) == 'string' and held
end

-- Counters are whole numbers that can be counted on.
local function are_counters(name)
  for _, value in ipairs(redis.call('HVALS', name)) do
    if #value > 15 or not string.match(value, '^%-?%d+$') then return false end
  end
  return true
end

-- Moves a key that is not what it should be out of the way, to be looked at for a while. Returns its type then.
local function set_aside(name, kind, for_s)
  local found = redis.call('TYPE', name).ok
  if found == 'none' or found == kind then return nil end
  if kind == 'counters' and found == 'hash' and are_counters(name) then return nil end
  redis.call('RENAME', name, name .. ':garbled')
  redis.call('EXPIRE', name .. ':garbled', for_s)
  return found
end

-- One moment for the whole script, in seconds.
local moment
local function now()
  if not moment then
    local t = redis.call('TIME')
    moment = tonumber(t[1]) + tonumber(t[2]) / 1000000
  end
  return moment
end
