-- Stands before every script: what they all get and share.
-- KEYS: keys of one name; each folder of scripts has its own, always the same.
-- ARGV[1]: one JSON object, decoded here as `args`. Its field `keys` holds templates of keys by kind, with '@' for the
-- id; each script names the others. What has to keep its bytes comes as text: a number is a double here, and cjson
-- writes an empty list as {}.
local args = cjson.decode(ARGV[1])

local function key(kind, id) return (string.gsub(args.keys[kind], '@', id)) end

local function now()
  local t = redis.call('TIME')
  return tonumber(t[1]) + tonumber(t[2]) / 1000000
end
