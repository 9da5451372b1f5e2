"""HTTP clients of a gateway, for our own commands."""
