"""`bench gateway`: the gateway with workers that answer at once."""
