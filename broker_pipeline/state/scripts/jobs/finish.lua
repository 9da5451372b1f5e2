-- Ends a running job, after its last tokens.
-- args: job_id, attempt, status, result and error where there is one, num_tokens that have to be there, unless it is
-- left out, commits (one or none). ARGV[2]: their tokens.
-- Returns 1 when the job ended as this call says, be it now or by an earlier, equal call; else 0.
local id = args.job_id
local status, attempt, result, failure =
  unpack(redis.call('HMGET', key('job', id), 'status', 'attempt', 'result', 'error'))
if tonumber(attempt) ~= args.attempt then return 0 end
if FINAL[status] then
  local same = status == args.status and (result or nil) == args.result and (failure or nil) == args.error
  return same and 1 or 0
end
if status ~= 'running' then return 0 end
for _, item in ipairs(args.commits) do
  if commit(item) == 0 then return 0 end
end
-- A Redis that was killed may have lost tokens that it had taken: the result would tell of more than there are.
if args.num_tokens and redis.call('LLEN', key('tokens', id)) ~= args.num_tokens then return 0 end
finish(id, args.status, args.result, args.error)
sweep()
return 1
