"""An artifact's tensors as a mapping that reads each when it is asked for, so that nobody holds them all at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from stages.artifact import Artifact


class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name on `device`, in `dtype`; keeps none. Errors as of `Artifact.load`, for absent files at once."""

    def __init__(self, artifact: Artifact, names: Iterable[str], device: torch.device, dtype: torch.dtype) -> None:
        self._artifact = artifact
        self._names = tuple(names)
        self._device = device
        self._dtype = dtype
        self.num_bytes = 0
        """Bytes of what was read so far."""
        artifact.check(self._names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor = self._artifact.load([name], self._device, self._dtype)[name]
        self.num_bytes += tensor.nbytes
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
