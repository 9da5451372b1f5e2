"""Train the captioner from nothing, in two phases: learn to see, then do so whatever the prompt.

    python -m training.train --out RUN
    python -m training.train --out RUN2 --init RUN/model --free-prompts --seed 1 --cell-weight 0 \\
        --steps 800 --learning-rate 3e-4 --warmup 100

Each writes log.jsonl and the checkpoint directory `model`, refreshed whenever the measured share of right captions has
not fallen. The schedule ends at the step count or at the time limit, whichever comes first.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional

from training.batches import SequenceBuilder
from training.checkpoint import build_model, save_checkpoint
from training.fast_forward import FastForward, grid_tables, patch_rows
from training.kinds import SPRITES
from training.render import Renderer
from training.scenes import SceneSampler, Split
from training.sprites import load_sprites
from training.tokenizer import build_tokenizer

SIZES = ((256, 256), (256, 320), (320, 256), (224, 320), (320, 224))
SIZE_WEIGHTS = (0.4, 0.15, 0.15, 0.15, 0.15)
EVAL_SCENES = 1024


class Pictures:
    """Endless batches of one split: patch rows, sequences, and which sprite covers which merged cell."""

    def __init__(self, split: Split, sequences: SequenceBuilder, seed: int, device: str) -> None:
        """Draw scenes of a split, in an order that `seed` decides."""
        sprites = load_sprites()
        self._sampler = SceneSampler(sprites, split, device)
        self._renderer = Renderer(sprites, device)
        self._sequences = sequences
        self._generator = torch.Generator(device).manual_seed(seed)

    def batch(self, num: int, size: tuple[int, int], *, default_prompt: bool = False) -> tuple:
        """Draw patch rows [B, N, 768], Sequences, and cells int64 [B, N/4] (num_sprites: empty, -100: neither)."""
        height, width = size
        scenes = self._sampler.sample(num, height, width, self._generator)
        pictures, alphas = self._renderer.draw(scenes, height, width, self._generator)
        prompt = self._sequences.random_prompts(num, self._generator)
        prompt = torch.zeros_like(prompt) if default_prompt else prompt
        sequences = self._sequences.build(scenes, height * width // 1024, prompt)
        share, thing = functional.avg_pool2d(alphas, 32).flatten(2).max(1)
        sprite = scenes.sprite.gather(1, scenes.group.clamp(min=0)).gather(1, thing)
        cells = torch.where(share > 0.2, sprite, torch.where(share < 0.04, len(SPRITES), -100))
        return patch_rows(pictures), sequences, cells


def _compiled(piece: Callable) -> Callable:
    """Compile one graph for each picture size; blocks of equal shape share it."""
    torch._dynamo.config.recompile_limit = 64  # noqa: SLF001
    return torch.compile(piece, dynamic=False)


class Trainer:
    """Model, optimizer and forward passes; float32 masters, arithmetic in `dtype` on copies of them."""

    def __init__(self, options: argparse.Namespace, device: str, dtype: torch.dtype) -> None:
        """Build the model that the command line's options ask for."""
        self.options, self.device, self.dtype = options, device, dtype
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer, options.seed)
        if options.init:
            self.model.load_state_dict(load_file(options.init / "model.safetensors"), strict=False)
        self.model.to(device)
        self.config = self.model.config
        self._plain_forward = FastForward(self.config)
        self._forward = FastForward(self.config, _compiled) if options.compile else self._plain_forward
        named = {name: value for name, value in self.model.named_parameters() if name != "lm_head.weight"}
        width = 3 * self.config.text_config.hidden_size
        self.cell_head = torch.nn.Linear(width, len(SPRITES) + 1).to(device)
        self._names = list(named)
        self._masters = [*named.values(), *self.cell_head.parameters()]
        self._copies = [value.detach().to(dtype, copy=True).requires_grad_() for value in self._masters]
        for value in self._masters:
            value.grad = torch.zeros_like(value)
        decayed = [value for value in self._masters if value.ndim > 1]
        plain = [value for value in self._masters if value.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=device == "cuda")
        self.tables = {size: grid_tables(self.config, *size, device) for size in SIZES}

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The copies that the forward passes use, by transformers' names."""
        return dict(zip(self._names, self._copies, strict=False))

    def losses(self, batch: tuple, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean caption loss per token and mean loss of the cell head."""
        rows, sequences, cells = batch
        p, tables = self.parameters, self.tables[size]
        pooled, levels = self._forward.vision(p, rows, tables)
        logits = self._forward.text(p, sequences, pooled, levels, tables.merged)
        caption = functional.cross_entropy(logits.float().flatten(0, 1), sequences.target.flatten())
        cell_logits = functional.linear(torch.cat(levels, -1), *self._copies[-2:])
        return caption, functional.cross_entropy(cell_logits.float().flatten(0, 1), cells.flatten())

    def warm_up(self, pictures: Pictures) -> None:
        """Compile the pieces for every size, before the clock of the schedule starts."""
        for size in SIZES:
            caption, cell = self.losses(pictures.batch(self.options.batch, size), size)
            torch.autograd.grad(caption + cell, self._copies)

    def step(self, batch: tuple, size: tuple[int, int], learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Do one update and return the two losses, still on the device."""
        caption, cell = self.losses(batch, size)
        gradients = torch.autograd.grad(caption + self.options.cell_weight * cell, self._copies)
        torch._foreach_copy_([value.grad for value in self._masters], list(gradients))
        torch.nn.utils.clip_grad_norm_(self._masters, 1.0)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self._copies, self._masters)
        return caption.detach(), cell.detach()

    @torch.no_grad()
    def exact_share(self, pictures: Pictures, num: int) -> float:
        """Share of captions whose every token is the most likely one: what greedy decoding gets right."""
        right = total = 0
        for start in range(0, num, 256):
            size = SIZES[start // 256 % len(SIZES)]
            rows, sequences, _ = pictures.batch(min(256, num), size, default_prompt=True)
            pooled, levels = self._plain_forward.vision(self.parameters, rows, self.tables[size])
            logits = self._plain_forward.text(self.parameters, sequences, pooled, levels, self.tables[size].merged)
            wanted = sequences.target >= 0
            fine = ((logits.argmax(-1) == sequences.target) | ~wanted).all(1) & wanted.any(1)
            right, total = right + int(fine.sum()), total + int(wanted.any(1).sum())
        return right / total


def learning_rate(options: argparse.Namespace, step: int, elapsed_s: float) -> float | None:
    """Return a linear warm-up, cosine to zero; None when the run is over."""
    progress = max(step / options.steps, elapsed_s / (60 * options.minutes))
    if progress >= 1:
        return None
    return options.learning_rate * min(1.0, (step + 1) / options.warmup) * (0.5 + 0.5 * math.cos(math.pi * progress))


def train(options: argparse.Namespace) -> None:
    """Run the whole recipe."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    trainer = Trainer(options, device, torch.bfloat16 if device == "cuda" else torch.float32)
    builder = SequenceBuilder(trainer.tokenizer, options.seed, device, free_prompts=options.free_prompts)
    pictures = Pictures("train", builder, options.seed, device)
    sizes = random.Random(options.seed)
    log = (options.out / "log.jsonl").open("w")
    trainer.warm_up(pictures)
    began = last = time.monotonic()
    best, last_step, step = -1.0, 0, 0
    while (rate := learning_rate(options, step, time.monotonic() - began)) is not None:
        size = sizes.choices(SIZES, SIZE_WEIGHTS)[0]
        caption, cell = trainer.step(pictures.batch(options.batch, size), size, rate)
        step += 1
        if step % options.log_every == 0 or step == options.steps:
            entry = {"step": step, "caption_loss": round(caption.item(), 5), "cell_loss": round(cell.item(), 5)}
            now = time.monotonic()
            entry |= {"learning_rate": rate, "elapsed_s": round(now - began, 1)}
            entry["pictures_per_s"] = round((step - last_step) * options.batch / (now - last))
            if step % options.eval_every == 0 or step == options.steps:
                unseen = Pictures("test", builder, 1, device)
                entry["exact"] = trainer.exact_share(unseen, options.eval_scenes)
                if entry["exact"] >= best:
                    best = entry["exact"]
                    save_checkpoint(trainer.model, trainer.tokenizer, options.out / "model")
            last, last_step = time.monotonic(), step
            print(json.dumps(entry), file=log, flush=True)
            print(json.dumps(entry), flush=True)
    share = trainer.exact_share(Pictures("test", builder, 1, device), options.eval_scenes)
    if share >= best:
        save_checkpoint(trainer.model, trainer.tokenizer, options.out / "model")
    print(json.dumps({"step": step, "exact": share, "elapsed_s": round(time.monotonic() - began, 1)}), file=log)
    print(f"done: {step} steps, exact {share:.4f}", flush=True)


def parse_options() -> argparse.Namespace:
    """Read the command line; the defaults are the recipe of the shipped checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the log and the checkpoint")
    parser.add_argument("--minutes", type=float, default=12.5, help="time limit; the schedule adapts to it")
    parser.add_argument("--steps", type=int, default=7200, help="planned number of updates")
    parser.add_argument("--batch", type=int, default=512, help="pictures per update")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="updates of linear warm-up")
    parser.add_argument("--cell-weight", type=float, default=0.3, help="weight of the helper loss on sprite cells")
    parser.add_argument("--init", type=Path, help="checkpoint directory to start from")
    parser.add_argument("--free-prompts", action="store_true", help="prompts of arbitrary words (the second phase)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--eval-every", type=int, default=500)
    parser.add_argument("--eval-scenes", type=int, default=EVAL_SCENES)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    train(parse_options())
