-- Calls of commands and scripts on a store: `call` is for clients, `redis.call` for scripts, which are run unchanged.
local commands, decode, max_decoded = ...
local machine = {}
collectgarbage('setpause', 400)
local current
local decoded, num_decoded = {}, 0

-- As Redis answers: numbers are cut to integers, false is nothing, a table ends at its first nil. For Python a table is
-- laid flat, since each call of Python costs more than all else here: true, the number of its items, each of them.
local function lay_out(value, items, num)
  num = num + 1
  if type(value) == 'number' then value = value < 0 and math.ceil(value) or math.floor(value) end
  if type(value) ~= 'table' then
    items[num] = value or false
    return num
  end
  local length = 0
  while value[length + 1] ~= nil do length = length + 1 end
  items[num], items[num + 1] = true, length
  num = num + 1
  for index = 1, length do num = lay_out(value[index], items, num) end
  return num
end

local function answer(value)
  if type(value) == 'string' then return value end
  local items = {}
  return unpack(items, 1, lay_out(value, items, 0))
end

-- An argument as Redis has it.
local function text(value)
  if type(value) ~= 'number' then return value end
  return string.format(value == math.floor(value) and '%d' or '%.17g', value)
end

local function texts(value, ...)
  if value == nil then return end
  return text(value), texts(...)
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

-- Runs commands, each with the number of its arguments before it, unless a key holds something else than was seen.
function machine.transact(store, now, watched, seen, ...)
  store.now = now
  if commands.GET(store, watched) ~= seen then return end
  local all, at, answers = {...}, 1, {}
  while at <= #all do
    local num = all[at]
    answers[#answers + 1] = commands[all[at + 1]](store, unpack(all, at + 2, at + 1 + num))
    at = at + 2 + num
  end
  return answer(answers)
end

function machine.run(store, now, script, num_keys, ...)
  local keys, args = {}, {...}
  for index = 1, num_keys do keys[index] = table.remove(args, 1) end
  store.now, current = now, store
  return answer(script(keys, args))
end

redis = {}
function redis.call(command, first, second, ...)
  if ... == nil then return commands[command](current, text(first), text(second)) end
  return commands[command](current, text(first), text(second), texts(...))
end
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
