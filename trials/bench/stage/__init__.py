"""`bench stage`: one stage's steps against the device's own limits."""
