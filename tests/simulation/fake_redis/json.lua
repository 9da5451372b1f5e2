-- Reads JSON as compact as ours is: an object or a list becomes a table, null is `null`.
local null = ...
local find, sub, byte = string.find, string.sub, string.byte
local value
local escapes = {b = '\b', f = '\f', n = '\n', r = '\r', t = '\t'}

local function character(hex)
  local code = tonumber(hex, 16)
  if code < 128 then return string.char(code) end
  if code < 2048 then return string.char(192 + math.floor(code / 64), 128 + code % 64) end
  return string.char(224 + math.floor(code / 4096), 128 + math.floor(code / 64) % 64, 128 + code % 64)
end

local function unescaped(text)
  text = string.gsub(text, '\\u(%x%x%x%x)', character)
  return (string.gsub(text, '\\(.)', function(name) return escapes[name] or name end))
end

-- Each returns what begins at a place, and the place after it.
local function text_at(json, at)
  local stop = find(json, '["\\]', at + 1)
  if byte(json, stop) == 34 then return sub(json, at + 1, stop - 1), stop + 1 end
  while byte(json, stop) == 92 do stop = find(json, '["\\]', stop + 2) end
  return unescaped(sub(json, at + 1, stop - 1)), stop + 1
end

local function list_at(json, at)
  local items, num = {}, 0
  at = at + 1
  while byte(json, at) ~= 93 do
    num = num + 1
    items[num], at = value(json, at)
    if byte(json, at) == 44 then at = at + 1 end
  end
  return items, at + 1
end

local function object_at(json, at)
  local fields, name = {}, nil
  at = at + 1
  while byte(json, at) ~= 125 do
    name, at = text_at(json, at)
    fields[name], at = value(json, at + 1)
    if byte(json, at) == 44 then at = at + 1 end
  end
  return fields, at + 1
end

function value(json, at)
  local first = byte(json, at)
  if first == 34 then return text_at(json, at) end
  if first == 123 then return object_at(json, at) end
  if first == 91 then return list_at(json, at) end
  if first == 116 then return true, at + 4 end
  if first == 102 then return false, at + 5 end
  if first == 110 then return null, at + 4 end
  local _, stop = find(json, '^%-?[%d.eE+-]+', at)
  return tonumber(sub(json, at, stop)), stop + 1
end

return function(json) return (value(json, 1)) end
