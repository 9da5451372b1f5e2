-- Calls of commands and scripts on a store: `call` is for clients, `redis.call` for scripts, which are run unchanged.
-- `list` makes a list for Python, `decode` reads JSON.
local commands, list, decode, max_decoded = ...
local machine = {}
local current
local decoded, num_decoded = {}, 0

-- As Redis answers: numbers are cut to integers, false is nothing, a table ends at its first nil.
local function answer(value)
  local kind = type(value)
  if kind == 'number' then return value < 0 and math.ceil(value) or math.floor(value) end
  if kind ~= 'table' then return value or nil end
  local items, num = {}, 0
  while value[num + 1] ~= nil do
    num = num + 1
    items[num] = answer(value[num])
  end
  return list(unpack(items, 1, num))
end

-- Arguments as Redis has them.
local function texts(value, ...)
  if value == nil then return end
  if type(value) == 'number' then value = string.format(value == math.floor(value) and '%d' or '%.17g', value) end
  return value, texts(...)
end

local function copied(value)
  if type(value) ~= 'table' then return value end
  local copy = {}
  for key, item in pairs(value) do copy[key] = copied(item) end
  return copy
end

function machine.store() return {values = {}, kinds = {}, ends = {}, now = 0} end

machine.copied = copied

function machine.kinds(store)
  local names = {}
  for name, kind in pairs(store.kinds) do
    if commands.EXISTS(store, name) == 1 then names[#names + 1] = {name, kind} end
  end
  return answer(names)
end

function machine.call(store, now, command, ...)
  store.now = now
  return answer(commands[command](store, ...))
end

function machine.run(store, now, script, num_keys, ...)
  local keys, args = {}, {...}
  for index = 1, num_keys do keys[index] = table.remove(args, 1) end
  store.now, current = now, store
  return answer(script(keys, args))
end

redis = {call = function(command, ...) return commands[command](current, texts(...)) end}
redis.pcall = redis.call  -- nothing is of a wrong type here

-- Decodes once what comes again and again; no script changes what it decoded.
cjson = {}
function cjson.decode(text)
  if decoded[text] == nil then
    if num_decoded > max_decoded then decoded, num_decoded = {}, 0 end
    decoded[text], num_decoded = decode(text), num_decoded + 1
  end
  return decoded[text]
end

return machine
