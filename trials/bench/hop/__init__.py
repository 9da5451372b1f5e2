"""`bench hop`: one message over the broker."""
