-- Adds a sample of the pipeline's rates, at Redis's time, unless another gateway has added one just now.
-- KEYS: rates. args: sample, least_s, num_kept, for_s. Returns 1 where it was added.
local RATES = KEYS[1]
local last = redis.call('LINDEX', RATES, -1)
local is_json, sample = pcall(cjson.decode, last or '')
local at = is_json and type(sample) == 'table' and tonumber(sample.at)
if at and math.abs(now() - at) < args.least_s then return 0 end
args.sample.at = now()
redis.call('RPUSH', RATES, cjson.encode(args.sample))
redis.call('LTRIM', RATES, -args.num_kept, -1)
redis.call('EXPIRE', RATES, args.for_s)
return 1
