"""Benchmarks: what a pipeline costs against what it could cost, side by side in one run."""
