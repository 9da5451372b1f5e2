"""The decoder on a CUDA device: Triton kernels, joined projections, CUDA graphs."""
