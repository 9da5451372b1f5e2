from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from broker_pipeline.artifact_files.safetensors_header import StoredTensor, file_size_bytes, header_bytes
from broker_pipeline.errors import ExportError
from export.safetensors_file import write_file


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_library_reads_what_is_streamed(tmp_path, dtype):
    tensors = {
        "a.weight": torch.randn(3, 5, 7).to(getattr(torch, dtype)),
        'odd "name" \u00e9': torch.randn(11).to(getattr(torch, dtype)),
    }
    stored = [StoredTensor(name, dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]
    path = tmp_path / "x.safetensors"
    chunked = [(s, list(tensors[s.name].split(2))) for s in stored]
    hashes = write_file(path, chunked, header_bytes(stored))
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert path.stat().st_size == file_size_bytes(stored)
    assert len(header_bytes(stored)) % 8 == 0
    assert len(set(hashes)) == 2


def test_chunks_that_do_not_add_up_leave_no_file(tmp_path):
    stored = [StoredTensor("a", "float32", (4,))]
    with pytest.raises(ExportError, match="a came to 12 bytes instead of 16"):
        write_file(tmp_path / "x.safetensors", [(stored[0], [torch.zeros(3)])], header_bytes(stored))
    assert not (tmp_path / "x.safetensors").exists()
