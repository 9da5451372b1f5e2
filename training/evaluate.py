"""Measure a checkpoint: captions of unseen scenes by transformers' greedy `generate`, compared with the truth.

    python -m training.evaluate broker_pipeline/demo_model --scenes 2000

prints a Markdown table: whole captions and each field, with the default prompt, with prompts never trained on, and with
DeepStack switched off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from training.captions import captions, parse
from training.prompts import DEFAULT_PROMPT, HELD_OUT_PROMPTS
from training.render import Renderer
from training.scenes import SceneSampler
from training.sprites import load_sprites

SIZES = ((256, 256), (256, 320), (320, 256))
FIELDS = ("kind", "colour", "count", "relation", "background")


def unseen_scenes(num: int, seed: int, *, batch: int = 100) -> Iterator[tuple[list[Image.Image], list[str]]]:
    """Yield batches of pictures of one size with their captions, all of the test split, made on the CPU from a seed."""
    sprites = load_sprites()
    sampler, renderer = SceneSampler(sprites, "test"), Renderer(sprites)
    generator = torch.Generator().manual_seed(seed)
    for number, start in enumerate(range(0, num, batch)):
        height, width = SIZES[number % len(SIZES)]
        wanted = min(batch, num - start)
        scenes = sampler.sample(2 * wanted + 8, height, width, generator)
        scenes = scenes.take(scenes.valid.nonzero()[:wanted, 0])
        pictures, _ = renderer.draw(scenes, height, width, generator)
        arrays = pictures.byte().permute(0, 2, 3, 1).numpy()
        yield [Image.fromarray(array) for array in arrays], captions(scenes)


class Captioner:
    """A checkpoint with transformers' own preprocessing and greedy decoding; pictures of a batch share one size."""

    def __init__(self, directory: Path, device: str, dtype: torch.dtype) -> None:
        """Load the checkpoint in `directory`."""
        self.device = device
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.processor = AutoImageProcessor.from_pretrained(directory)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(directory, dtype=dtype).to(device).eval()

    def switch_deepstack_off(self) -> None:
        """Drop the DeepStack rows, leaving everything else as it is."""
        self.model.model.language_model._deepstack_process = lambda hidden_states, *_: hidden_states  # noqa: SLF001

    def captions(self, pictures: list[Image.Image], prompt: str = DEFAULT_PROMPT) -> list[str]:
        """Return greedy captions of equally large pictures."""
        return self.tokenizer.batch_decode(self.tokens(pictures, prompt), skip_special_tokens=True)

    @torch.inference_mode()
    def tokens(self, pictures: list[Image.Image], prompt: str = DEFAULT_PROMPT) -> torch.Tensor:
        """Greedy token ids `[num_pictures, longest caption]` of equally large pictures."""
        turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}
        text = self.tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        images = self.processor(pictures, return_tensors="pt")
        num_visual = int(images["image_grid_thw"][0].prod()) // 4
        text = text.replace("<|image_pad|>", "<|image_pad|>" * num_visual)
        ids = torch.tensor([self.tokenizer(text)["input_ids"]] * len(pictures), device=self.device)
        output = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=images["pixel_values"].to(self.device),
            image_grid_thw=images["image_grid_thw"].to(self.device),
            mm_token_type_ids=(ids == self.model.config.image_token_id).int(),
        )
        return output[:, ids.shape[1] :]


def field_results(expected: str, actual: str) -> dict[str, bool]:
    """Say which fields of a caption are right; fields that the scene lacks are left out."""
    truth, said = parse(expected), parse(actual)
    results = {"caption": expected == actual}
    results["kind"] = said is not None and said.kinds == truth.kinds
    if any(truth.colours):
        results["colour"] = said is not None and said.colours == truth.colours
    results["count"] = said is not None and said.counts == truth.counts
    if truth.relation:
        results["relation"] = said is not None and said.relation == truth.relation
    results["background"] = said is not None and said.background == truth.background
    return results


def measure(
    captioner: Captioner,
    num: int,
    seed: int,
    wrong: list[tuple[str, str]],
    prompts: tuple[str, ...] = (DEFAULT_PROMPT,),
) -> dict[str, tuple[int, int]]:
    """Count right and total by field over `num` unseen scenes; wrong captions are appended to `wrong`.

    Each batch of a hundred scenes takes the next of `prompts`.
    """
    score: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (pictures, expected), prompt in zip(unseen_scenes(num, seed), itertools.cycle(prompts), strict=False):
        for truth, actual in zip(expected, captioner.captions(pictures, prompt), strict=True):
            for field, right in field_results(truth, actual).items():
                score[field][0] += right
                score[field][1] += 1
            if truth != actual:
                wrong.append((truth, actual))
    return {field: (right, total) for field, (right, total) in score.items()}


def main() -> None:
    """Measure with and without DeepStack and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    captioner = Captioner(options.model, options.device, getattr(torch, options.dtype))
    wrong: list[tuple[str, str]] = []
    began = time.monotonic()
    whole = measure(captioner, options.scenes, options.seed, wrong)
    elapsed_s = time.monotonic() - began
    others = measure(captioner, options.scenes, options.seed, [], HELD_OUT_PROMPTS)
    captioner.switch_deepstack_off()
    without = measure(captioner, options.scenes, options.seed, [])
    print(
        f"{options.scenes} unseen scenes, seed {options.seed}, {options.device}, {options.dtype}, {elapsed_s:.0f} s\n"
    )
    print("| field | scenes | right | prompts never trained on | DeepStack off |\n|---|---|---|---|---|")
    for field in ("caption", *FIELDS):
        shares = " | ".join(f"{100 * arm[field][0] / arm[field][1]:.2f} %" for arm in (whole, others, without))
        print(f"| {field} | {whole[field][1]} | {shares} |")
    for truth, actual in wrong[:20]:
        print(f"\nexpected {truth}\n  actual {actual}")
    if options.json:
        options.json.write_text(
            json.dumps(
                {"whole": whole, "other_prompts": others, "without_deepstack": without, "wrong": wrong}, indent=1
            )
        )


if __name__ == "__main__":
    main()
