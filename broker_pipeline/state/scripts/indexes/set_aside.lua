-- Moves indexes that are none out of the way. KEYS: indexes. args: types of them, for_s: how long they are kept.
-- Returns those that were moved, each with the type that it had.
local moved = {}
for i, name in ipairs(KEYS) do
  local found = set_aside(name, args.types[i], args.for_s)
  if found then moved[#moved + 1] = {name, found} end
end
return moved
