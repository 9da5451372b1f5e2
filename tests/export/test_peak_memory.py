"""Memory while exporting experts of the 235B model's real size, as the kernel counts it for a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, header_bytes
from export.synthetic.generated_files import write_processor_files, write_text_files
from export.synthetic.random_checkpoint import random_hf_config
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import model_shapes

FULL_SIZE = os.environ.get("EXPORT_FULL_SIZE") == "1"  # 128 experts: 5 GB to write, 5 GB to read
NUM_EXPERTS = 128 if FULL_SIZE else 16
GATE_UP = "model.language_model.layers.0.mlp.experts.gate_up_proj"
DOWN = "model.language_model.layers.0.mlp.experts.down_proj"


def real_layer_config() -> dict:
    """One layer of the 235B model; the rest is as small as can be."""
    config = random_hf_config(moe=True, tied=False, num_layers=3, dtype=torch.bfloat16)
    config["text_config"] |= {
        "num_hidden_layers": 1,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": NUM_EXPERTS,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    }
    config["vision_config"] |= {"out_hidden_size": 4096, "deepstack_visual_indexes": []}
    return config


def write_source(directory: Path) -> int:
    """Write the layer with random bits, in the hub's layout, and return its bytes."""
    directory.mkdir()
    write_text_files(directory)
    write_processor_files(directory)
    config = real_layer_config()
    (directory / "config.json").write_text(json.dumps(config))
    shapes = model_shapes(ModelConfig.from_json(config))
    stored = [
        StoredTensor(name, "bfloat16", (shape[0], shape[2], shape[1]) if ".experts." in name else shape)
        for name, shape in shapes.items()
    ]
    random = np.random.default_rng(0)
    with (directory / "model.safetensors").open("wb") as file:
        file.write(header_bytes(stored))
        for tensor in stored:
            for start in range(0, tensor.size_bytes, 64 << 20):
                file.write(random.bytes(min(64 << 20, tensor.size_bytes - start)))
    return (directory / "model.safetensors").stat().st_size


def peak_bytes(code: str, *arguments: str) -> int:
    """Run Python code in a process of its own and return the most memory that it ever had resident.

    Read by the process itself from VmHWM: `ru_maxrss` of a child also counts its parent from before the exec.
    """
    report = "\nprint('VmHWM', open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    result = subprocess.run(
        [sys.executable, "-c", code + report, *arguments], check=True, capture_output=True, text=True
    )
    return int(result.stdout.split("VmHWM")[1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(900 if FULL_SIZE else 120)
def test_memory_does_not_grow_with_the_layer(tmp_path, record_property):
    size_bytes = write_source(tmp_path / "source")
    idle = peak_bytes("import export.terminal")
    target = tmp_path / "target"
    export = "import sys; from broker_pipeline.cli import cli; cli(sys.argv[1:], standalone_mode=False)"
    peak = peak_bytes(export, "export", str(tmp_path / "source"), str(target), "--workers", "2")
    record_property("checkpoint_bytes", size_bytes)
    record_property("peak_bytes", peak)
    print(f"checkpoint {size_bytes / 1e9:.2f} GB, peak {peak / 1e6:.0f} MB, of which idle {idle / 1e6:.0f} MB")
    assert peak < 2e9
    assert peak - idle < 300e6  # a few experts; one whole tensor of the small case alone is 403 MB
    with (
        safe_open(tmp_path / "source" / "model.safetensors", framework="pt") as source,
        safe_open(target / "block-00000.safetensors", framework="pt") as block,
    ):
        for name in (GATE_UP, DOWN):
            assert block.get_slice(name).get_shape()[0] == NUM_EXPERTS
            for expert in (0, NUM_EXPERTS // 2, NUM_EXPERTS - 1):
                turned = source.get_slice(name)[expert].view(torch.int16).t()
                assert torch.equal(block.get_slice(name)[expert].view(torch.int16), turned)
