"""Long lists of tensor names, made short enough to read without leaving any out."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def group_names(names: Iterable[str]) -> list[str]:
    """Fold names that differ only in their numbers: `layers.0.x`, `layers.1.x` become `layers.{0-1}.x`.

    A fold that would produce a name which is not in the list is not made; those names stand alone.
    """
    families: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    for name in names:
        template = _NUMBER.sub("{}", name)
        families[template].add(tuple(int(number) for number in _NUMBER.findall(name)))
    lines: list[str] = []
    for template, members in sorted(families.items()):
        lines.extend(_fold(template, members))
    return lines


def _fold(template: str, members: set[tuple[int, ...]]) -> list[str]:
    axes = [sorted(set(axis)) for axis in zip(*members, strict=True)]
    if math.prod(len(axis) for axis in axes) == len(members):
        line = template.format(*(_ranges(axis) for axis in axes))
        return [line if len(members) == 1 else f"{line} ({len(members)} tensors)"]
    return [template.format(*numbers) for numbers in sorted(members)]


def _ranges(numbers: list[int]) -> str:
    """Write sorted numbers as `7` or `{0-3,5}`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    text = ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)
    return text if len(numbers) == 1 else f"{{{text}}}"
