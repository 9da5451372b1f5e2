"""Keys to the gateway, and what each has used of its limits."""
