"""Triton kernels of the decoder and the vision tower, one noun a file; imported only where a CUDA device computes.

The CPU path has the same in plain torch, which the tests compare with. Kernels compute in fp32 and round to the
tensors' dtype where plain torch rounds.
"""
