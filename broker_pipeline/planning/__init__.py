"""Which layout of a model over devices gives the most captions per second, and how many those are. Pure."""
