"""Triton kernels of the decoder and the vision tower, one noun a file; imported only where a CUDA device computes.

Each has a plain torch reference of the same meaning, which the CPU path uses and the tests compare with. Kernels
compute in fp32 and round to the tensors' dtype where the reference rounds.
"""
