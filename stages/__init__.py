"""The workers that hold the model: stages with a range of decoder blocks, and vision workers.

The compute parts (`qwen3_vl`, `compute`, `kv_cache`, `attention`, `sampler`) are synchronous and know no broker.
"""
