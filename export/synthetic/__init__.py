"""Checkpoints made up for tests and benchmarks: random weights, a tiny tokenizer, a template."""
