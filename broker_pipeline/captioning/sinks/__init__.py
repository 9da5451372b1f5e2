"""Where finished rows go besides the log: sidecars, tables and shards that training scripts read."""
