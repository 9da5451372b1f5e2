-- Stands before every script about workers.

-- The record of a live instance; false where there is none, or something that is no record and so belongs to nobody.
local function live_record(name)
  local held = text(name)
  local is_json, record = pcall(cjson.decode, held or '')
  return is_json and type(record) == 'table' and type(record.instance) == 'string' and held, record
end
