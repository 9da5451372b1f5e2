"""Codes of FP8 in kernels: rows as codes and scales, and one step of a product of them."""
