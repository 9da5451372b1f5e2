"""The workers that hold the model: stages with a range of decoder blocks, and vision workers.

The compute parts (`qwen3_vl`, `kernels`, `device`, `compute`) are synchronous and know no broker.
"""
