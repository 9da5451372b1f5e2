"""The fingerprint names content: the same everywhere for the same bytes, another one for any other byte."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time

import msgspec
import pytest
import torch

from broker_pipeline.artifact_manifest import fingerprint_of, read_manifest
from tests.kit.models.random_checkpoints import write_random_checkpoint


@pytest.fixture
def checkpoint(tmp_path):
    return write_random_checkpoint(tmp_path / "source", num_layers=3, dtype=torch.bfloat16)


def test_place_time_and_order_of_work_do_not_matter(tmp_path, checkpoint, run_export):
    first = run_export(checkpoint, tmp_path / "first", num_workers=1).manifest
    elsewhere = tmp_path / "deep" / "in" / "another" / "place"
    shutil.copytree(checkpoint, elsewhere)
    for path in elsewhere.iterdir():
        os.utime(path, (time.time() - 1e6, time.time() - 1e6))
    second = run_export(elsewhere, tmp_path / "second", num_workers=4).manifest
    assert first == second
    texts = [(tmp_path / name / "weights_manifest.json").read_text() for name in ("first", "second")]
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]


def test_it_is_a_known_value(checkpoint, run_export):
    """Computed by hand from the documented canonical form; a change here breaks every artifact that exists."""
    manifest = run_export(checkpoint).manifest
    content = {
        "config_sha256": hashlib.sha256((checkpoint / "config.json").read_bytes()).hexdigest(),
        "dtype": "bfloat16",
        "format_version": 1,
        "num_blocks": 3,
        "side_files": sorted(
            [path.name, hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in checkpoint.iterdir()
            if path.name not in {"config.json", "model.safetensors"}
        ),
        "tensors": sorted([t.name, t.file, t.dtype, list(t.shape), t.sha256, t.tied_to] for t in manifest.tensors),
    }
    canonical = json.dumps(content, separators=(",", ":"), sort_keys=True).encode()
    assert manifest.fingerprint == hashlib.sha256(canonical).hexdigest()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_any_other_byte_gives_another_one(tmp_path, checkpoint, run_export, name):
    before = run_export(checkpoint, tmp_path / "before").manifest.fingerprint
    path = checkpoint / name
    if name == "model.safetensors":
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.write_bytes(path.read_bytes() + b"\n")
    assert run_export(checkpoint, tmp_path / "after").manifest.fingerprint != before


def test_provenance_is_not_in_it(checkpoint, run_export):
    manifest = read_manifest(run_export(checkpoint).directory)
    moved = msgspec.structs.replace(manifest, source="someone/somewhere@abc")
    assert fingerprint_of(moved) == manifest.fingerprint
    renamed = tuple(msgspec.structs.replace(tensor, name=tensor.name + "x") for tensor in manifest.tensors)
    assert fingerprint_of(msgspec.structs.replace(manifest, tensors=renamed)) != manifest.fingerprint
