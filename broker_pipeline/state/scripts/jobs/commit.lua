-- Appends tokens of many jobs. args: commits, each of them an item of `commit`. ARGV[2]: their tokens, one a line.
-- Returns 1 or 0 per job.
local done = {}
for i, item in ipairs(args.commits) do done[i] = commit(item) end
return done
