"""Benchmarks that compute: one stage against the device's own limits, the whole model in one process."""
