-- Forgets jobs that have ended, whose results are kept elsewhere. args: job_ids.
for _, id in ipairs(args.job_ids) do
  local status = redis.call('HGET', key('job', id), 'status')
  if FINAL[status] and status ~= 'discarded' then bury(id) end
end
return 1
