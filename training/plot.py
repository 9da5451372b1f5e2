"""Draw the loss curve of a run (needs matplotlib, which nothing else here does).

python -m training.plot training/log-phase1.jsonl docs/images/demo_model_loss.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def main(log: Path, picture: Path) -> None:
    """Caption and cell loss on a logarithmic axis, share of right captions on its own."""
    entries = [entry for line in log.read_text().splitlines() if "caption_loss" in (entry := json.loads(line))]
    measured = [entry for entry in entries if "exact" in entry]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    steps = [entry["step"] for entry in entries]
    left.semilogy(steps, [max(entry["caption_loss"], 1e-5) for entry in entries], label="caption loss per token")
    left.semilogy(steps, [max(entry["cell_loss"], 1e-5) for entry in entries], label="helper loss per cell", alpha=0.6)
    left.set(xlabel="step", ylabel="cross-entropy")
    left.legend()
    right.plot([entry["step"] for entry in measured], [100 * entry["exact"] for entry in measured], marker="o")
    right.set(xlabel="step", ylabel="unseen captions exactly right, %", ylim=(70, 101))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
