"""The `tcp` edge: payloads over connections of their own, encrypted, straight into the memory where they stay."""
