"""The edge for two workers on one machine: a ring in shared memory."""
