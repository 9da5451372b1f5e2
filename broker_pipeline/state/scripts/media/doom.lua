-- Has an object deleted some time from now. args: name, after_s.
return redis.call('ZADD', DOOMED, now() + args.after_s, args.name)
