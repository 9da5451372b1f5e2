"""Redis's commands that our processes use, in scripts and outside of them. None of them lists keys by pattern."""

_CONNECTION = ("ping", "select")
_SCRIPTS = ("evalsha", "script|load")

WORKER_COMMANDS = (*_CONNECTION, *_SCRIPTS, "del", "exists", "get", "pttl", "sadd", "set", "srem", "time")

ALL_COMMANDS = (
    *("multi", "exec", "discard", "watch", "unwatch"),
    *WORKER_COMMANDS,
    *("expire", "getbit", "hdel", "hget", "hgetall", "hincrby", "hlen", "hmget", "hset", "hsetnx", "hvals", "lindex"),
    *("llen", "lrange", "mget", "persist", "pexpire", "rename", "rpush", "scard", "setbit", "smembers", "type", "zadd"),
    *("zcard", "zrange", "zrangebyscore", "zrank", "zrem", "zremrangebyscore", "zrevrange", "zrevrangebyscore"),
    *("zrevrank", "zscore"),
)
