"""Memory while layers are compared, as the kernel counts it for a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from export.parity.receipt import Receipt
from export.synthetic.generated_files import write_processor_files, write_text_files
from export.synthetic.random_checkpoint import random_hf_config, random_weights
from stages.qwen3_vl.config import ModelConfig
from stages.qwen3_vl.tensors import layer_shapes

WIDE = {"hidden_size": 512, "intermediate_size": 16_384}


@pytest.fixture
def peak_bytes(tmp_path, write_checkpoint, run_export):
    """Return the most memory that comparing a model of so many wide layers has resident."""

    def run(num_layers: int) -> int:
        config = wide_config(num_layers)
        weights = random_weights(ModelConfig.from_json(config), seed=1, dtype=torch.bfloat16)
        source = write_checkpoint(config, weights, name=f"wide-{num_layers}")
        write_text_files(source)
        write_processor_files(source)
        return compare(run_export(source).directory, source, tmp_path / "receipt.json").peak_memory_bytes

    return run


def wide_config(num_layers: int) -> dict:
    config = random_hf_config(moe=False, tied=True, num_layers=num_layers, dtype=torch.bfloat16)
    config["text_config"] |= WIDE
    config["vision_config"] |= {"out_hidden_size": WIDE["hidden_size"], "deepstack_visual_indexes": [0, 1]}
    return config


def compare(artifact: Path, source: Path, receipt: Path) -> Receipt:
    arguments = ["export", "verify", artifact, "--parity", source, "--receipt", receipt, "--tokens", "0"]
    subprocess.run([sys.executable, "-m", "broker_pipeline", *map(str, arguments)], check=True, capture_output=True)
    return msgspec.json.decode(receipt.read_bytes(), type=Receipt)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_number_of_layers(peak_bytes):
    shapes = layer_shapes(ModelConfig.from_json(wide_config(3)), 0).values()
    layer_bytes = 2 * sum(torch.Size(shape).numel() for shape in shapes)
    assert layer_bytes > 50e6
    assert peak_bytes(7) - peak_bytes(3) < layer_bytes
