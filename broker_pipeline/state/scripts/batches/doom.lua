-- Has a part deleted some time from now, unless a file has it by then. args: name, after_s.
return redis.call('ZADD', DOOMED, now() + args.after_s, args.name)
