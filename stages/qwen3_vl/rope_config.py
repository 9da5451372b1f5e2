"""The decoder's rotary embedding, as a model's configuration states it: plain, or stretched by YaRN."""

from __future__ import annotations

from dataclasses import dataclass

from stages.qwen3_vl.config_fields import Fields

DEFAULT, YARN = "default", "yarn"


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """How YaRN stretches positions beyond the `original_max_positions` that the model was trained for.

    Frequencies that turn more than `beta_fast` times over those positions stay, those that turn less than `beta_slow`
    times are divided by `factor`, between the two lies a ramp, whose ends are whole frequencies if `truncate`. Cosines
    and sines are multiplied by `attention_factor`; None follows from the others, as `mscale` and `mscale_all_dim` say.
    """

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Base of the frequencies, how many of them each axis follows, and YaRN's scaling where there is one."""

    theta: float
    mrope_section: tuple[int, int, int]
    yarn: YarnScaling | None = None

    @classmethod
    def read(cls, text: Fields) -> RopeConfig:
        """Read it from the section `text_config`; the hub keeps `rope_theta` alongside `rope_scaling`.

        `rope_scaling` counts where both spellings are there: people add it to a file that transformers 5 has saved.

        Raises:
            ModelConfigError: names the field that is missing or wrong, or the scaling that is not implemented.
        """
        resaved = text.has("rope_parameters") and not text.has("rope_scaling")
        rope = text.section("rope_parameters" if resaved else "rope_scaling")
        rope.require("mrope_interleaved", allowed=True)
        rope.require("partial_rotary_factor", allowed=1)
        section = rope.integers("mrope_section")
        if len(section) != 3:
            raise rope.error("mrope_section", "three integers: time, height, width")
        return cls(
            theta=rope.number("rope_theta") if rope.has("rope_theta") else text.number("rope_theta"),
            mrope_section=(section[0], section[1], section[2]),
            yarn=_read_yarn(rope) if _read_type(rope) == YARN else None,
        )


def _read_type(rope: Fields) -> str:
    """Return the kind of scaling; `type` is its older name."""
    stated = [key for key in ("rope_type", "type") if rope.has(key)] or ["rope_type"]
    for key in stated:
        if rope.text(key) not in {DEFAULT, YARN} or rope.text(key) != rope.text(stated[0]):
            raise rope.error(key, f"{DEFAULT!r} or {YARN!r}, the kinds that this engine implements")
    return rope.text(stated[0])


def _read_yarn(rope: Fields) -> YarnScaling:
    factor = rope.number("factor")
    if factor < 1:
        raise rope.error("factor", "a number of at least 1")
    numbers = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    return YarnScaling(
        factor,
        rope.positive("original_max_position_embeddings"),
        truncate=rope.flag("truncate") if rope.has("truncate") else True,
        **{key: rope.number(key) for key in numbers if rope.has(key)},
    )
